"""One sequence of tokens for all prompts, by greedy coordinate gradient from several random starts.

The search is that of `probes.monitors.attacks`; here its example is a start, and the objective of a start is the mean
loss of the target over all prompts with its tokens in them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.probes.monitors.attacks import GreedyCoordinate, attack, token_table
from jax_interp.steering.backdoors.audit import AuditTexts, audit_losses, target_losses
from jax_interp.steering.backdoors.method import METHODS, Ranking, Suspect, TriggerMethod, ranked
from jax_interp.surgery import Add, Model, at
from jax_interp.surgery.taps import static


@METHODS.register
@dataclasses.dataclass(frozen=True)
class GreedyTokens(TriggerMethod):
    """The sequences that greedy coordinate gradient ends in, each with the fall of the loss.

    Args:
      allowed: the tokens that a trigger may consist of.
      width: the number of tokens. They take the place of the last tokens of each request.
      skip: the number of tokens at the end of each request that stay.
      starts: the number of random starts.
      search: the search of one start.
      embed: the address of the embeddings of tokens, before positions are added.
    """

    allowed: tuple[int, ...]
    width: int = 2
    skip: int = 0
    starts: int = 8
    search: GreedyCoordinate = dataclasses.field(default_factory=lambda: GreedyCoordinate(20, 16, 8))
    embed: str = "embed"

    def __post_init__(self) -> None:
        if not self.allowed or min(self.allowed) < 0 or min(self.width, self.starts) < 1 or self.skip < 0:
            raise UserError("allowed must be tokens, width and starts at least 1, and skip at least 0")

    def rank(self, suspect: Suspect, audit: AuditTexts, key: Key[Array, ""]) -> Ranking:
        slots, allowed = audit.last_slots(self.width, self.skip), np.unique(self.allowed)
        table = token_table(suspect.model, int(allowed[-1]) + 1, self.embed)
        draw, search = jax.random.split(key)
        start = jnp.asarray(allowed, jnp.int32)[jax.random.randint(draw, (self.starts, self.width), 0, len(allowed))]
        tokens, weight, places = map(jnp.asarray, (audit.texts.tokens, audit.texts.weight, slots))
        objective = _MeanLoss(suspect.model, tokens, weight, places, self.embed)
        everywhere = np.ones((self.starts, self.width), bool)
        mask = np.isin(np.arange(len(table)), allowed)
        found = attack(self.search, objective, start, everywhere, search, table=table, allowed=mask)
        best: dict[tuple[int, ...], float] = {}
        for one, loss in zip(np.asarray(found.tokens).tolist(), np.asarray(found.loss).tolist(), strict=True):
            best[tuple(one)] = loss
        before = float(audit_losses(suspect.model, audit).mean(dtype=np.float64))
        drops = [before - loss for loss in best.values()]
        return ranked(f"{type(self).__name__} of {self.width}", "tokens", list(best), drops, "nats")


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class _MeanLoss:
    """From the tokens of each start, and what is added to their embeddings, to its mean loss over all texts."""

    model: Model
    tokens: Int[Array, "text pos"]
    weight: Float[Array, "text pos"]
    slots: Int[Array, "text width"]
    embed: str = static()

    def __call__(self, candidates: Int[Array, "start width"], shift: Float[Array, "start width d"] | None) -> Array:
        row = jnp.arange(len(self.tokens))[:, None]

        def of_one(candidate: Array, shift: Array | None) -> Array:
            filled = self.tokens.at[row, self.slots].set(candidate[None, :])
            edits = ()
            if shift is not None:
                zero = jnp.zeros((*filled.shape, shift.shape[-1]), shift.dtype)
                edits = (at(self.embed, Add(zero.at[row, self.slots].set(shift[None]))),)
            return jnp.mean(target_losses(self.model, filled, self.weight, *edits))

        if shift is None:
            return jax.vmap(lambda candidate: of_one(candidate, None))(candidates)
        return jax.vmap(of_one)(candidates, shift)
