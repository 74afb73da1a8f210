"""`TargetTexts`: texts, some tokens of which steering should make likelier."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.objectives import cross_entropy


@dataclasses.dataclass(frozen=True, eq=False)
class TargetTexts:
    """Texts and the weights of their tokens. `target_texts` makes them from prompts and continuations.

    Args:
      tokens: the texts, padded at the end.
      weight: the weight of each token in the log-likelihood of its text. 0 at the first token, which is not predicted,
        and at padding.
      groups: the group of each text, such as the template that it is made from. Empty: all texts are of one group.

    Raises:
      UserError: the shapes differ, a first token has a weight, or a text has no weight.
    """

    tokens: Int[np.ndarray, "text pos"]
    weight: Float[np.ndarray, "text pos"]
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or self.tokens.shape != self.weight.shape or not self.tokens.size:
            raise UserError(f"tokens {self.tokens.shape} and weight {self.weight.shape} must be the same [text, pos]")
        if self.weight[:, 0].any() or not self.weight.any(axis=1).all() or not np.isfinite(self.weight).all():
            raise UserError("every text needs a token with a finite weight, and its first token, which has no weight")
        if len(self.groups) not in (0, len(self.tokens)):
            raise UserError(f"{len(self.groups)} groups for {len(self.tokens)} texts")

    def __len__(self) -> int:
        return len(self.tokens)


def target_texts(
    prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], groups: Sequence[str] = ()
) -> TargetTexts:
    """Texts of a prompt and a continuation each. The log-likelihood of a text is the mean over its continuation.

    Args:
      prompts: the token ids of each prompt, BOS included if the model has one.
      continuations: the token ids of each continuation.
      groups: the group of each text, such as its template.

    Raises:
      UserError: the numbers of prompts and continuations differ, or one of them is empty.
    """
    if len(prompts) != len(continuations) or not prompts or not all(map(len, [*prompts, *continuations])):
        raise UserError("give as many continuations as prompts, each of at least one token")
    lengths = [len(prompt) + len(rest) for prompt, rest in zip(prompts, continuations, strict=True)]
    tokens = np.zeros((len(prompts), max(lengths)), np.int32)
    weight = np.zeros(tokens.shape, np.float32)
    for row, (prompt, rest) in enumerate(zip(prompts, continuations, strict=True)):
        tokens[row, : lengths[row]] = [*prompt, *rest]
        weight[row, len(prompt) : lengths[row]] = 1 / len(rest)
    return TargetTexts(tokens, weight, tuple(groups))


def log_likelihood(
    logits: Float[Array, "*row pos vocab"], tokens: Int[Array, "*row pos"], weight: Float[Array, "*row pos"]
) -> Float[Array, "*row"]:
    """The weighted sum of the log-probabilities of the tokens of each text, in nats. Weight 0 counts as nothing."""
    losses, weight = cross_entropy(logits[..., :-1, :], tokens[..., 1:]), weight[..., 1:]
    return -jnp.sum(jnp.where(weight == 0, jnp.zeros((), losses.dtype), weight * losses), axis=-1)
