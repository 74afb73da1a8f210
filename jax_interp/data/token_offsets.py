"""The pieces of a text that its tokens are: where a word stands, and whether two prompts match token for token."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """One token of a text: `text == whole[start:end]`, in characters."""

    id: int
    text: str
    start: int
    end: int


class Aligned(NamedTuple):
    """Two prompts of as many tokens, and the positions at which they differ."""

    one: list[int]
    other: list[int]
    differ: list[int]


def pieces(tokenizer: Tokenizer, text: str, *, bos: bool) -> list[Piece]:
    """What each token of `tokenizer.encode(text, bos=bos)` stands for in the text, spaces included.

    BOS is an empty piece. Of a character that is cut into several tokens each has the whole character, and so has a
    token that the tokenizer inserted before it.
    """
    encoding = tokenizer.exact.encode(text, add_special_tokens=False)
    start = [Piece(tokenizer.encode("", bos=True)[0], "", 0, 0)] if bos else []
    return start + [Piece(i, text[a:b], a, b) for i, (a, b) in zip(encoding.ids, encoding.offsets, strict=True)]


def positions(tokenizer: Tokenizer, text: str, substring: str, *, bos: bool, index: int | None = None) -> list[int]:
    """The positions of all tokens that overlap `substring`, BOS counted.

    Where it occurs more than once, `index` says which (0 the first, -1 the last). `UserError` when it is absent, or not
    alone and no index was given.
    """
    if not substring:
        raise UserError("the empty string stands nowhere in particular: name a part of the text")
    found = [i for i in range(len(text)) if text.startswith(substring, i)]
    cut = pieces(tokenizer, text, bos=bos)
    if not found:
        raise UserError(f"{substring!r} is not in the text {text!r}; its tokens are {[p.text for p in cut]}")
    if index is None and len(found) > 1:
        raise UserError(
            f"{substring!r} stands {len(found)} times in {text!r}, at characters {found}: say which by index="
        )
    if index is not None and not -len(found) <= index < len(found):
        raise UserError(f"index={index}, but {substring!r} stands {len(found)} times in {text!r}")
    start = found[index or 0]
    end = start + len(substring)
    return [i for i, piece in enumerate(cut) if piece.start < end and piece.end > start]


def aligned(tokenizer: Tokenizer, one: str, other: str, *, bos: bool) -> Aligned:
    """The tokens of two prompts that are to be compared position by position.

    `UserError` where they have not as many tokens; it says where they first differ and which word was cut.
    """
    a, b = (pieces(tokenizer, text, bos=bos) for text in (one, other))
    if len(a) == len(b):
        ids = [p.id for p in a], [p.id for p in b]
        return Aligned(*ids, [i for i, (x, y) in enumerate(zip(*ids, strict=True)) if x != y])
    first = next(i for i, (x, y) in enumerate(zip_longest(a, b)) if x is None or y is None or x.id != y.id)
    same = 0  # tokens that agree again at the end
    while same < min(len(a), len(b)) - first and a[-1 - same].id == b[-1 - same].id:
        same += 1
    cuts = [[piece.text for piece in side[first : len(side) - same]] for side in (a, b)]
    raise UserError(
        f"{one!r} has {len(a)} tokens and {other!r} {len(b)}; from position {first} on one has {cuts[0]} where the "
        f"other has {cuts[1]}: choose words that are cut into as many tokens (tokenizer.id_of says if one is one)"
    )
