"""Texts that steering is trained on: prompts with completions, as arrays.

Questions are pairs of completions: `matching` shows the behaviour, `other` does not. Completions have no other side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.questions import Questions


@dataclasses.dataclass(frozen=True, eq=False)
class Completions:
    """Prompts and completions, as token ids.

    ReFT-r1 is trained on completions with the concept and without it. The other methods need those with it only.

    Args:
      prompts: the token ids of each prompt, BOS included if the model has one.
      completions: the token ids of each completion.

    Raises:
      UserError: there is no text, the lengths differ, or a prompt or a completion has no tokens.
    """

    prompts: tuple[tuple[int, ...], ...]
    completions: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompts or len(self.prompts) != len(self.completions):
            raise UserError(
                f"{len(self.prompts)} prompts and {len(self.completions)} completions: give at least one prompt, and "
                "one completion for each"
            )
        for i, text in enumerate(zip(self.prompts, self.completions, strict=True)):
            if not all(text):
                raise UserError(f"prompt and completion of text {i} need at least one token each")

    def __len__(self) -> int:
        return len(self.prompts)


Concept = Completions | Questions
"""What one intervention is trained on."""


@dataclasses.dataclass(frozen=True)
class ChangedTokens:
    """The tokens whose values are changed.

    By default these are all tokens, in generation the new tokens too. With `first` or `last` they are the first and the
    last tokens of the prompt only, as "f5+l5" in pyreft.
    """

    skip: int = 0
    """The number of tokens at the front that are left out. AxBench leaves out the BOS: 1."""
    first: int = 0
    """The number of tokens at the front of the prompt, after those that are left out."""
    last: int = 0
    """The number of tokens at the end of the prompt."""

    def __post_init__(self) -> None:
        if min(self.skip, self.first, self.last) < 0:
            raise UserError(f"the numbers of tokens must be at least 0: {self}")

    def mask(self, prompt: int, length: int) -> Bool[np.ndarray, " pos"]:
        """The changed tokens of a text of `length` tokens, whose first `prompt` tokens are the prompt."""
        at = np.arange(length)
        if not self.first and not self.last:
            return at >= self.skip
        begins = (at >= self.skip) & (at < self.skip + self.first)
        return (begins | (at >= prompt - self.last)) & (at < prompt)

    def pos(self) -> slice | list[int] | None:
        """The same tokens as the `pos=` of an edit. Negative positions count from the end of the prompt in generation,
        and from the end of the text in a plain call."""
        if not self.first and not self.last:
            return slice(self.skip, None) if self.skip else None
        return [*range(self.skip, self.skip + self.first), *range(-self.last, 0)]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """Texts as arrays, padded on the right.

    Args:
      tokens: token ids.
      mask: True for real tokens.
      targets: True for the tokens of the completion, which are predicted.
      changed: True for the tokens whose values are changed.
    """

    tokens: Int[Array, "*rows pos"]
    mask: Bool[Array, "*rows pos"]
    targets: Bool[Array, "*rows pos"]
    changed: Bool[Array, "*rows pos"]

    def take(self, rows: Int[np.ndarray, " row"]) -> Texts:
        """Some of the texts."""
        return jax.tree.map(lambda array: array[rows], self)

    def padded(self, length: int) -> Texts:
        """The texts with padding up to `length` tokens."""
        more = length - self.tokens.shape[1]
        return jax.tree.map(lambda array: np.pad(array, ((0, 0), (0, more))), self)


def texts_of(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], changed: ChangedTokens, reserved: int = 0
) -> Texts:
    """Prompts with completions as arrays.

    Args:
      prompts: token ids.
      completions: token ids.
      changed: the tokens whose values are changed.
      reserved: the number of placeholders before each prompt. If it is not 0, these are the changed tokens.

    Raises:
      UserError: no token of a text is changed.
    """
    longest = max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True)) + reserved
    tokens = np.zeros((len(prompts), longest), np.int32)
    mask, targets, where = (np.zeros(tokens.shape, bool) for _ in range(3))
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start, end = reserved + len(prompt), reserved + len(prompt) + len(completion)
        tokens[row, reserved:end] = (*prompt, *completion)
        mask[row, :end], targets[row, start:end] = True, True
        if reserved:
            where[row, :reserved] = True
        else:
            where[row, :end] = changed.mask(start, end)
        if not where[row].any():
            raise UserError(f"no token of text {row} is changed: it has {end} tokens, and {changed}")
    return Texts(tokens, mask, targets, where)  # type: ignore[arg-type]
