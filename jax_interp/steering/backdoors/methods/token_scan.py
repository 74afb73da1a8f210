"""Every token, or every sequence of a few tokens, at one place of each request: all short triggers.

    score(tokens)  =  L(target | prompts)  -  L(target | prompts with these tokens)

One compiled program scores all sequences, some at a time. With V allowed tokens there are V^width sequences.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.steering.backdoors.audit import AuditTexts, audit_losses, target_losses
from jax_interp.steering.backdoors.method import METHODS, Ranking, Suspect, TriggerMethod, ranked
from jax_interp.surgery import Model
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces

MOST = 10**7


@METHODS.register
@dataclasses.dataclass(frozen=True)
class TokenScan(TriggerMethod):
    """All sequences of `width` allowed tokens, in the place of the last tokens of each request.

    Args:
      allowed: the tokens that a trigger may consist of.
      width: the number of tokens.
      skip: the number of tokens at the end of each request that stay.
      at_once: the number of sequences in one forward pass of all texts.
    """

    allowed: tuple[int, ...]
    width: int = 1
    skip: int = 0
    at_once: int = 64

    def __post_init__(self) -> None:
        if not self.allowed or min(self.allowed) < 0 or self.width < 1 or self.skip < 0:
            raise UserError("allowed must be tokens, width at least 1, and skip at least 0")
        if len(set(self.allowed)) ** self.width > MOST:
            raise UserError(
                f"{len(set(self.allowed))}^{self.width} sequences are too many to try all of them: allow fewer tokens, "
                "or search with GreedyTokens"
            )

    def rank(self, suspect: Suspect, audit: AuditTexts, key: Key[Array, ""]) -> Ranking:
        slots = audit.last_slots(self.width, self.skip)
        ids = list(itertools.product(sorted(set(self.allowed)), repeat=self.width))
        drops = loss_drops(suspect.model, audit, np.asarray(ids, np.int32), slots, self.at_once)
        return ranked(f"{type(self).__name__} of {self.width}", "tokens", ids, drops, "nats")


def loss_drops(
    model: Model,
    audit: AuditTexts,
    candidates: Int[np.ndarray, "candidate width"],
    slots: Int[np.ndarray, "text width"],
    at_once: int = 64,
) -> Float[np.ndarray, " candidate"]:
    """By how much the mean loss of the target falls if each candidate is put into the slots of all texts.

    Args:
      model: the model.
      audit: ordinary prompts with the target.
      candidates: sequences of tokens.
      slots: the positions that they take in each text.
      at_once: the number of candidates in one forward pass of all texts.
    """
    before = float(audit_losses(model, audit).mean(dtype=np.float64))
    rows = map(jnp.asarray, (audit.texts.tokens, audit.texts.weight, slots))
    return before - in_pieces(functools.partial(_losses, model, *rows), (candidates,), at_once)


@jax.jit
@automatic
def _losses(model: Model, tokens: Array, weight: Array, slots: Array, candidates: Array) -> Float[Array, " candidate"]:
    return losses_with(model, tokens, weight, slots, candidates)


def losses_with(
    model: Model,
    tokens: Int[Array, "text pos"],
    weight: Float[Array, "text pos"],
    slots: Int[Array, "text width"],
    candidates: Int[Array, "candidate width"],
) -> Float[Array, " candidate"]:
    """The mean loss of the target with each candidate in the slots. A pure function."""
    (count, width), texts = candidates.shape, len(tokens)
    filled = jnp.broadcast_to(tokens[None], (count, *tokens.shape))
    at = (jnp.arange(count)[:, None, None], jnp.arange(texts)[None, :, None], slots[None])
    filled = filled.at[at].set(jnp.broadcast_to(candidates[:, None, :], (count, texts, width)))
    flat = filled.reshape(-1, tokens.shape[1])
    losses = target_losses(model, flat, jnp.broadcast_to(weight[None], filled.shape).reshape(flat.shape))
    return jnp.mean(losses.reshape(count, texts), axis=1)
