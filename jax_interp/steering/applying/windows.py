"""Windows: the tokens that steering acts on, by their position, or by their token id.

    generated()             new tokens only
    prompt()                the prompt only
    last_of_prompt(3)       the last three tokens of the prompt
    from_prompt_end(-1)     the last token of the prompt, and all new tokens
    first(4)                the first four tokens (ActAdd)
    from_position(starts)   from a position on, for each row: the end of the instruction (CAA)
    at_positions([2, -1])   given positions, of all rows or of each row
    with_ids([13, 198])     tokens with these ids

A token of the prompt is read in one call, and each new token in a later one. All positions are absolute, so a window
means the same tokens there and in a whole text. A whole text is a prompt without new tokens. To score a text that has
both, give `prompt=`, the length of the prompt in each row.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.placement import Placement
from jax_interp.surgery import ValueTokens
from jax_interp.surgery.region import constant
from jax_interp.surgery.taps import static

FAR = int(np.iinfo(np.int32).max)
"""The end of a window that does not end."""


def prompt_lengths(
    x: Array, tokens: ValueTokens, given: Int[ArrayLike, "batch"] | None = None
) -> Int[Array, "#batch 1"]:
    """The number of tokens of the prompt in each row. A call with whole texts has prompts only, unless it is given."""
    if given is not None:
        return per_row(given, "prompt")
    length = tokens.positions.length
    if length is None:
        length = x.shape[tokens.axes.index("pos")]
    return jnp.reshape(jnp.asarray(length, jnp.int32), (-1, 1))


def per_row(value: ArrayLike, name: str) -> Array:
    """A number, or one for each row (`[batch]` or `[batch, 1]`), as an array `[#batch, 1]`.

    Raises:
      UserError: it has another shape.
    """
    array = jnp.asarray(value)
    if array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
        raise UserError(f"{name} is a number, or one for each row, [batch]; got shape {array.shape}")
    return array.reshape(-1, 1)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Window(Placement):
    """The tokens from `start` up to `stop`, without it.

    Args:
      start: the first token; a number, or one for each row.
      stop: the token after the last one; a number, or one for each row.
      relative: count from the end of the prompt: 0 is the first new token, -1 the last token of the prompt. Otherwise
        0 is the first token of the text.
      prompt: the length of the prompt in each row. None: the prompt of a text that is generated, or the whole text.
    """

    start: Int[ArrayLike, "..."] = 0
    stop: Int[ArrayLike, "..."] = FAR
    relative: bool = static(default=False)
    prompt: Int[ArrayLike, "batch"] | None = None

    def factor(self, x: Array, tokens: ValueTokens) -> Float[Array, "#batch #pos"]:
        here = tokens.absolute(x)
        if self.relative:
            here = here - prompt_lengths(x, tokens, self.prompt).astype(here.dtype)
        start, stop = (per_row(end, "an end of a window").astype(here.dtype) for end in (self.start, self.stop))
        return ((here >= start) & (here < stop)).astype(jnp.float32)


def prompt(lengths: Int[ArrayLike, "batch"] | None = None) -> Window:
    """The tokens of the prompt."""
    return Window(-FAR, 0, relative=True, prompt=lengths)


def generated(lengths: Int[ArrayLike, "batch"] | None = None) -> Window:
    """The new tokens. The first of them is chosen without steering; `from_prompt_end(-1)` steers its choice too."""
    return Window(0, FAR, relative=True, prompt=lengths)


def last_of_prompt(n: int = 1, lengths: Int[ArrayLike, "batch"] | None = None) -> Window:
    """The last `n` tokens of the prompt."""
    return Window(-n, 0, relative=True, prompt=lengths)


def from_prompt_end(offset: Int[ArrayLike, "..."], lengths: Int[ArrayLike, "batch"] | None = None) -> Window:
    """All tokens from an offset to the end of the prompt on. -1: from the last token of the prompt on."""
    return Window(offset, FAR, relative=True, prompt=lengths)


def first(n: Int[ArrayLike, "..."]) -> Window:
    """The first `n` tokens of the text."""
    return Window(0, n)


def from_position(start: Int[ArrayLike, "..."]) -> Window:
    """All tokens from a position on; a number, or one for each row."""
    return Window(start, FAR)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class AtPositions(Placement):
    """The tokens at given positions.

    Args:
      positions: `[n]`, or `[batch, n]` for each row. Negative positions count from the end of the prompt. If a row has
        no such position, its values become NaN.
      prompt: the length of the prompt in each row, as in `Window`.
    """

    positions: Int[Array, "n"] | Int[Array, "batch n"]
    prompt: Int[ArrayLike, "batch"] | None = None

    def factor(self, x: Array, tokens: ValueTokens) -> Float[Array, "#batch #pos"]:
        here, length = tokens.absolute(x), prompt_lengths(x, tokens, self.prompt)
        given = jnp.atleast_2d(jnp.asarray(self.positions, jnp.int32))
        wanted = (given + (given < 0).astype(jnp.int32) * length).astype(here.dtype)
        inside = jnp.any(here[:, :, None] == wanted[:, None, :], axis=-1).astype(jnp.float32)
        ends = jnp.full_like(length, FAR) if tokens.positions.open_ended else prompt_lengths(x, tokens)
        valid = jnp.all((wanted >= 0) & (wanted < ends), axis=1, keepdims=True)
        return jnp.where(jnp.broadcast_to(valid, inside.shape), inside, jnp.full_like(inside, jnp.nan))


def at_positions(positions: Any, lengths: Int[ArrayLike, "batch"] | None = None) -> AtPositions:
    """The tokens at given positions: a list for all rows, or `[batch, n]`. See `AtPositions`.

    Raises:
      UserError: they are no whole numbers, or have another shape.
    """
    given = jnp.asarray(positions)
    if not jnp.issubdtype(given.dtype, jnp.integer) or given.ndim not in (1, 2):
        raise UserError(f"positions are whole numbers, [n] or [batch, n]; got {given.dtype}{list(given.shape)}")
    return AtPositions(constant(positions if given is positions else np.asarray(positions), np.int32), lengths)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WithIds(Placement):
    """The tokens whose id is in a set, such as the punctuation, or the tokens of a chat template.

    Args:
      ids: the token ids, `[n]`, or `[batch, n]` for each row.
    """

    ids: Int[Array, "n"] | Int[Array, "batch n"]

    def factor(self, x: Array, tokens: ValueTokens) -> Float[Array, "#batch #pos"]:
        here = tokens.positions.ids
        if here is None:
            raise UserError("the inputs of this model are no token ids: choose tokens by their position")
        wanted = jnp.atleast_2d(jnp.asarray(self.ids)).astype(here.dtype)
        return jnp.any(here[:, :, None] == wanted[:, None, :], axis=-1).astype(jnp.float32)


def with_ids(ids: Any) -> WithIds:
    """The tokens whose id is in a set: a list of ids for all rows, or `[batch, n]`.

    Raises:
      UserError: they are no whole numbers, or have another shape.
    """
    given = np.asarray(ids)
    if not np.issubdtype(given.dtype, np.integer) or given.ndim not in (1, 2) or not given.size:
        raise UserError(f"token ids are whole numbers, [n] or [batch, n]; got {given.dtype}{list(given.shape)}")
    return WithIds(constant(given, np.int32))


def after_marker(
    tokens: Int[ArrayLike, "batch pos"], marker: Any, mask: Bool[ArrayLike, "batch pos"] | None = None
) -> Int[np.ndarray, "batch"]:
    """The position after the last occurrence of a marker in each row, for `from_position`: the end of the instruction.

    Args:
      tokens: the prompts.
      marker: the token ids that end an instruction, such as those of `[/INST]`.
      mask: True for real tokens.

    Returns:
      Absolute positions, which do not count padding.

    Raises:
      UserError: the marker is empty, or a row does not have it.
    """
    ids, ends = np.asarray(tokens), np.asarray(marker).reshape(-1)
    real = np.ones(ids.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if not ends.size:
        raise UserError("the marker has no tokens")
    found = np.zeros(len(ids), np.int32)
    for row, (line, kept) in enumerate(zip(ids, real, strict=True)):
        text = line[kept]
        starts = [i for i in range(len(text) - len(ends) + 1) if np.array_equal(text[i : i + len(ends)], ends)]
        if not starts:
            raise UserError(f"row {row} does not have the marker {ends.tolist()}")
        found[row] = starts[-1] + len(ends)
    return found
