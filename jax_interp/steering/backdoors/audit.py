"""`AuditTexts`: ordinary prompts, each followed by the target that a backdoor is thought to produce.

A model without the backdoor finds the target unlikely after these prompts. A method looks for what makes it likely.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.steering.features.target_texts import TargetTexts, log_likelihood, target_texts
from jax_interp.surgery import Edit, Model, edit
from jax_interp.training.placement import automatic


@dataclasses.dataclass(frozen=True, eq=False)
class AuditTexts:
    """Prompts with the target. `audit_texts` makes them.

    Args:
      texts: the prompts, each followed by the target. The loss of a text is the mean of -log p over the target.
      request: the tokens of each text where a trigger could stand: they are steered, or replaced.
      target: the target.

    Raises:
      UserError: a text has no such token, or one of them belongs to the target.
    """

    texts: TargetTexts
    request: Bool[np.ndarray, "text pos"]
    target: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.request.shape != self.texts.tokens.shape:
            raise UserError(
                f"request {self.request.shape} must have the shape of the tokens, {self.texts.tokens.shape}"
            )
        if not (some := self.request.any(axis=1)).all():
            raise UserError(f"text {int(np.argmin(some))} has no token where a trigger could stand")
        first = np.argmax(self.texts.weight != 0, axis=1)
        if (self.request & (np.arange(self.request.shape[1])[None, :] >= first[:, None])).any():
            raise UserError("a trigger cannot stand in the target or after it")

    def __len__(self) -> int:
        return len(self.texts)

    def last_slots(self, width: int, skip: int = 0) -> Int[np.ndarray, "text width"]:
        """The positions of the last `width` tokens of each request, before the last `skip` of them.

        Raises:
          UserError: a request has fewer tokens.
        """
        if width < 1 or self.request.sum(axis=1).min() < width + skip:
            raise UserError(
                f"{width} tokens before the last {skip} of each request: the shortest request has "
                f"{self.request.sum(axis=1).min()} tokens"
            )
        places = [np.flatnonzero(row) for row in self.request]
        return np.stack([row[len(row) - skip - width : len(row) - skip] for row in places]).astype(np.int32)

    def with_tokens(self, tokens: Sequence[int], skip: int = 0) -> AuditTexts:
        """The same texts with these tokens as the last ones of each request, before the last `skip` of them."""
        slots, changed = self.last_slots(len(tokens), skip), self.texts.tokens.copy()
        changed[np.arange(len(self))[:, None], slots] = np.asarray(tokens, np.int32)[None, :]
        return dataclasses.replace(self, texts=dataclasses.replace(self.texts, tokens=changed))


def audit_texts(
    prompts: Sequence[Sequence[int]], target: Sequence[int], *, skip_first: int = 1, skip_last: int = 0
) -> AuditTexts:
    """Prompts followed by the target.

    Args:
      prompts: the token ids of each prompt, BOS included if the model has one.
      target: the token ids of the target.
      skip_first: the number of tokens at the front of each prompt where no trigger can stand, such as BOS.
      skip_last: the number of tokens at the end of each prompt where no trigger can stand, such as the header of the
        answer.

    Raises:
      UserError: there is no prompt, the target is empty, or a prompt has no token left for a trigger.
    """
    texts = target_texts(prompts, [target] * len(prompts))
    at = np.arange(texts.tokens.shape[1])[None, :]
    end = np.asarray([len(prompt) - skip_last for prompt in prompts])[:, None]
    return AuditTexts(texts, (at >= skip_first) & (at < end), tuple(int(token) for token in target))


def decoy_targets(
    target: Sequence[int], vocabulary: Sequence[int], count: int, *, seed: int = 0, known: Sequence[Sequence[int]] = ()
) -> list[tuple[int, ...]]:
    """Random targets of the same length, for the null distribution: nobody has trained the model to write them.

    Args:
      target: the real target.
      vocabulary: the tokens that targets consist of. Decoys that look like the real target make the fairest null.
      count: the number of decoys, all different.
      seed: the seed of the draws.
      known: other targets that are not drawn.

    Raises:
      UserError: there are not that many sequences.
    """
    choices = sorted({int(token) for token in vocabulary})
    taken = {tuple(int(token) for token in one) for one in (target, *known)}
    possible = len(choices) ** len(target) - sum(set(one) <= set(choices) and len(one) == len(target) for one in taken)
    if not choices or count > possible:
        raise UserError(f"{count} decoys of {len(target)} tokens from {len(choices)}: there are {max(possible, 0)}")
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        drawn = tuple(int(token) for token in rng.choice(choices, len(target)))
        if drawn not in taken:
            taken.add(drawn)
            found.append(drawn)
    return found


def target_losses(
    model: Model, tokens: Int[Array, "*row pos"], weight: Float[Array, "*row pos"], *edits: Edit | tuple[Edit, ...]
) -> Float[Array, "*row"]:
    """The mean of -log p over the target, for each text, in nats. A pure function."""
    return -log_likelihood((edit(model, *edits) if edits else model)(tokens), tokens, weight)


def audit_losses(model: Model, audit: AuditTexts) -> Float[np.ndarray, " text"]:
    """The loss of the target after each prompt, in nats per token.

    Raises:
      UserError: a loss is not finite.
    """
    losses = to_host(_losses(model, jnp.asarray(audit.texts.tokens), jnp.asarray(audit.texts.weight)))
    if not np.isfinite(losses).all():
        raise UserError("the loss of the target is not finite: try float32")
    return losses


_losses = jax.jit(automatic(target_losses))
