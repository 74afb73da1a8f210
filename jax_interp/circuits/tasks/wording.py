"""Prompts from templates, with checked tokens: `Wording` fills slots, `encode_pairs` aligns clean and corrupted.

A template has slots in braces: "Then, {A} and {B} went to the {PLACE}". A filler must be one token where it stands, so
every prompt of a template has the same number of tokens and a position can have a name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.data.token_offsets import token_offsets
from jax_interp.data.tokenizer import Tokenizer

_SLOT = re.compile(r"\{([A-Za-z0-9_]+)\}")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text, and where its slots are.

    Args:
      text: the text.
      slots: for each slot, in order, its name and the character after its filler. A name can occur several times.
    """

    text: str
    slots: tuple[tuple[str, int], ...]


@dataclasses.dataclass(frozen=True)
class EncodedPairs:
    """Clean and corrupted prompts as tokens, padded on the left to one length.

    Args:
      clean: the tokens of the clean prompts.
      corrupted: the tokens of the corrupted prompts.
      mask: True for real tokens. None if no prompt is padded.
      positions: the position of the last token of each slot, by name; the second "B" of a prompt is "B.1". "end" is the
        last position.
    """

    clean: Int[Array, "prompt pos"]
    corrupted: Int[Array, "prompt pos"]
    mask: Bool[Array, "prompt pos"] | None
    positions: Mapping[str, Int[np.ndarray, " prompt"]]


def fill(template: str, words: Mapping[str, str]) -> Prompt:
    """Fill the slots of a template. Raises `UserError` if a slot has no word."""
    text, slots, end = "", [], 0
    for match in _SLOT.finditer(template):
        name = match.group(1)
        if name not in words:
            raise UserError(f"the template {template!r} has a slot {name!r}; there are words for {', '.join(words)}")
        text += template[end : match.start()] + words[name]
        slots.append((name, len(text)))
        end = match.end()
    return Prompt(text + template[end:], tuple(slots))


def texts(prompts: Sequence[Prompt]) -> tuple[str, ...]:
    """The texts of prompts."""
    return tuple(prompt.text for prompt in prompts)


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def one_token(tokenizer: Tokenizer, words: Sequence[str], least: int, what: str) -> list[str]:
    """The words that are one token after a space, in order.

    Args:
      tokenizer: the tokenizer.
      words: the words, without the space.
      least: how many are needed.
      what: what they are, for the message.

    Raises:
      UserError: there are fewer than `least`.
    """
    found = [w for w, ids in zip(words, tokenizer.encode_batch([f" {w}" for w in words], bos=False)) if len(ids) == 1]
    if len(found) < least:
        raise UserError(
            f"only {len(found)} of {len(words)} {what} are one token in this tokenizer ({', '.join(found) or 'none'}), "
            f"and the task needs {least}: choose a model whose tokenizer has these words"
        )
    return found


def word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> Int[np.ndarray, " word"]:
    """The id of each word after a space. Raises `UserError` if one is not a single token."""
    encoded = tokenizer.encode_batch([f" {word}" for word in words], bos=False)
    for word, ids in zip(words, encoded):
        if len(ids) != 1:
            raise UserError(f"{' ' + word!r} is {len(ids)} tokens in this tokenizer, and an answer must be one")
    return np.asarray([ids[0] for ids in encoded], np.int32)


def encode_pairs(
    tokenizer: Tokenizer,
    clean: Sequence[Prompt],
    corrupted: Sequence[Prompt],
    slots: Sequence[str] | None = None,
    *,
    bos: bool | None = None,
) -> EncodedPairs:
    """Encode pairs of prompts and check that they are aligned.

    Args:
      tokenizer: the tokenizer.
      clean: the clean prompts.
      corrupted: the corrupted prompts, with their slots at the same tokens.
      slots: the slots whose positions are returned. Every prompt has them. None: all slots.
      bos: whether BOS comes first. None: if the tokenizer has one.

    Raises:
      UserError: the prompts of a pair differ in their number of tokens, or a slot is at different tokens in the two.
    """
    bos = tokenizer.bos_id is not None if bos is None else bos
    rows = [[_encoded(tokenizer, prompt, slots, bos) for prompt in pair] for pair in zip(clean, corrupted, strict=True)]
    for ((ids, at), (other_ids, other_at)), one, other in zip(rows, clean, corrupted):
        if len(ids) != len(other_ids):
            raise UserError(
                f"{one.text!r} has {len(ids)} tokens and {other.text!r} has {len(other_ids)}: they are not aligned"
            )
        if list(at.values()) != list(other_at.values()):
            raise UserError(f"the slots of {one.text!r} are at the tokens {at}, those of {other.text!r} at {other_at}")
    sizes = np.asarray([len(ids) for (ids, _), _ in rows], np.int32)
    length, filler, names = int(sizes.max()), tokenizer.bos_id or 0, list(rows[0][0][1])

    def padded(side: int) -> Int[Array, "prompt pos"]:
        return jnp.asarray([[filler] * (length - len(row[side][0])) + row[side][0] for row in rows], jnp.int32)

    mask = np.arange(length)[None] >= (length - sizes)[:, None]
    for (_, at), _ in rows:
        if list(at) != names:
            raise UserError(f"one prompt has the slots {list(at)}, another has {names}: use templates with equal slots")
    positions = {name: length - sizes + np.asarray([at[name] for (_, at), _ in rows], np.int32) for name in names}
    positions["end"] = np.full(len(rows), length - 1, np.int32)
    return EncodedPairs(padded(0), padded(1), None if mask.all() else jnp.asarray(mask), positions)


def _encoded(
    tokenizer: Tokenizer, prompt: Prompt, slots: Sequence[str] | None, bos: bool
) -> tuple[list[int], dict[str, int]]:
    """The tokens of a prompt, and the position of each slot, sorted by name."""
    offsets = token_offsets(tokenizer, prompt.text, bos=bos)
    seen: dict[str, int] = {}
    at = {}
    for name, end in prompt.slots:
        if slots is not None and name not in slots:
            continue
        label = name if name not in seen else f"{name}.{seen[name]}"
        seen[name] = seen.get(name, 0) + 1
        at[label] = next(i for i, token in enumerate(offsets) if token.start < end <= token.end)
    return [token.id for token in offsets], dict(sorted(at.items()))
