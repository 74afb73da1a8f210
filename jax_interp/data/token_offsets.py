"""The character offsets of tokens in a text, and the alignment of two prompts token by token."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenOffset:
    """One token, and the characters that it covers: `text` is `whole_text[start:end]`."""

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
    """The characters that each token of a text covers, including spaces.

    BOS covers the empty string. If a character is split into several tokens, each of them covers it. A token that the
    tokenizer inserts before this character covers it too.

    Args:
      tokenizer: the tokenizer.
      text: the text.
      bos: whether the tokens begin with BOS.

    Returns:
      One `TokenOffset` for each id of `tokenizer.encode(text, bos=bos)`.

    Raises:
      UserError: `bos` is True, but the tokenizer has no BOS.

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
      index: the occurrence to use if there are several: 0 is the first, -1 the last.

    Returns:
      Positions in `tokenizer.encode(text, bos=bos)`, ascending.

    Raises:
      UserError: `substring` is empty or not in the text, or occurs more than once while `index` is None.

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
    """The tokens of two prompts that are compared position by position, as in activation patching.

    Args:
      tokenizer: the tokenizer.
      first: one prompt.
      second: the other prompt.
      bos: whether the tokens begin with BOS.

    Returns:
      The tokens of both prompts, and the positions at which they differ.

    Raises:
      UserError: the prompts have different numbers of tokens. The message shows the first position at which they
        differ, and the tokens from there.

    Example:
        align_prompts(tokenizer, "(self", "[self", bos=True).differ
    """
    a, b = (token_offsets(tokenizer, text, bos=bos) for text in (first, second))
    if len(a) == len(b):
        ids = [offset.id for offset in a], [offset.id for offset in b]
        return AlignedPrompts(*ids, [i for i, (x, y) in enumerate(zip(*ids, strict=True)) if x != y])
    begin = next(i for i, (x, y) in enumerate(zip_longest(a, b)) if x is None or y is None or x.id != y.id)
    same = 0  # the number of equal tokens at the end
    while same < min(len(a), len(b)) - begin and a[-1 - same].id == b[-1 - same].id:
        same += 1
    cuts = [[offset.text for offset in side[begin : len(side) - same]] for side in (a, b)]
    raise UserError(
        f"{first!r} has {len(a)} tokens and {second!r} has {len(b)}. From position {begin} on, the first has {cuts[0]} "
        f"and the second has {cuts[1]}: choose words with equal numbers of tokens (tokenizer.id_of tells whether a "
        "word is one token)"
    )
