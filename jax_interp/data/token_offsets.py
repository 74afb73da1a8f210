"""Where the tokens of a text stand in it, and whether two prompts match token for token."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenOffset:
    """One token, and the characters of the text that it stands for: `text == whole[start:end]`."""

    id: int
    text: str
    start: int
    end: int


class AlignedPrompts(NamedTuple):
    """The tokens of two prompts of equal length, and the positions at which they differ."""

    first: list[int]
    second: list[int]
    differ: list[int]


def token_offsets(tokenizer: Tokenizer, text: str, *, bos: bool) -> list[TokenOffset]:
    """The characters that each token of a text stands for, spaces included.

    BOS stands for the empty string. A character that is cut into several tokens belongs to each of them, and also to a
    token that the tokenizer inserted before it.

    Args:
      tokenizer: the tokenizer.
      text: the text.
      bos: whether the tokens begin with BOS.

    Returns:
      One `TokenOffset` for each id of `tokenizer.encode(text, bos=bos)`.

    Raises:
      UserError: `bos`, and the tokenizer has none.

    Example:
        [offset.text for offset in token_offsets(tokenizer, "def f(x):", bos=True)]
    """
    encoding = tokenizer.exact.encode(text, add_special_tokens=False)
    first = [TokenOffset(tokenizer.encode("", bos=True)[0], "", 0, 0)] if bos else []
    offsets = zip(encoding.ids, encoding.offsets, strict=True)
    return first + [TokenOffset(id, text[start:end], start, end) for id, (start, end) in offsets]


def token_positions(
    tokenizer: Tokenizer, text: str, substring: str, *, bos: bool, index: int | None = None
) -> list[int]:
    """The positions of all tokens that overlap a part of the text.

    Args:
      tokenizer: the tokenizer.
      text: the text.
      substring: the part.
      bos: whether the tokens begin with BOS, which then has position 0.
      index: which occurrence, where there are several: 0 is the first, -1 the last.

    Returns:
      Positions in `tokenizer.encode(text, bos=bos)`, ascending.

    Raises:
      UserError: `substring` is empty or not in the text, or occurs more than once and no `index` was given.

    Example:
        token_positions(tokenizer, "(values, values", "values", bos=True, index=-1)
    """
    if not substring:
        raise UserError("the substring is empty: name a part of the text")
    starts = [i for i in range(len(text)) if text.startswith(substring, i)]
    offsets = token_offsets(tokenizer, text, bos=bos)
    if not starts:
        raise UserError(f"{substring!r} is not in the text {text!r}; its tokens are {[o.text for o in offsets]}")
    if index is None and len(starts) > 1:
        raise UserError(
            f"{substring!r} occurs {len(starts)} times in {text!r}, at characters {starts}: choose one with index="
        )
    if index is not None and not -len(starts) <= index < len(starts):
        raise UserError(f"index={index}, but {substring!r} occurs {len(starts)} times in {text!r}")
    start = starts[index or 0]
    end = start + len(substring)
    return [i for i, offset in enumerate(offsets) if offset.start < end and offset.end > start]


def align_prompts(tokenizer: Tokenizer, first: str, second: str, *, bos: bool) -> AlignedPrompts:
    """The tokens of two prompts that are to be compared position by position, as in activation patching.

    Args:
      tokenizer: the tokenizer.
      first: one prompt.
      second: the other prompt.
      bos: whether the tokens begin with BOS.

    Returns:
      The tokens of both, and the positions at which they differ.

    Raises:
      UserError: the prompts have different numbers of tokens. The message shows where they first differ, and which
        tokens stand there.

    Example:
        align_prompts(tokenizer, "(self", "[self", bos=True).differ
    """
    a, b = (token_offsets(tokenizer, text, bos=bos) for text in (first, second))
    if len(a) == len(b):
        ids = [offset.id for offset in a], [offset.id for offset in b]
        return AlignedPrompts(*ids, [i for i, (x, y) in enumerate(zip(*ids, strict=True)) if x != y])
    begin = next(i for i, (x, y) in enumerate(zip_longest(a, b)) if x is None or y is None or x.id != y.id)
    same = 0  # tokens at the end that agree again
    while same < min(len(a), len(b)) - begin and a[-1 - same].id == b[-1 - same].id:
        same += 1
    cuts = [[offset.text for offset in side[begin : len(side) - same]] for side in (a, b)]
    raise UserError(
        f"{first!r} has {len(a)} tokens and {second!r} {len(b)}; from position {begin} on one has {cuts[0]} where the "
        f"other has {cuts[1]}: choose words of as many tokens (tokenizer.id_of tells whether a word is one token)"
    )
