"""Named parts of texts as tokens, and classes of tokens that follow from them.

data = tokenized(tokenizer, texts, labels, spans={"answer": [" Paris", (12, 18), None]})
data = with_token_labels(data, {"True": "lie"}, otherwise="False")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.labelled_tokens import LabelledTokens

Part = str | Sequence[Any] | None
"""A part of a text: a string that occurs once in it, characters (start, end), a list of these, or None: no part."""


def character_spans(text: str, part: Part) -> list[tuple[int, int]]:
    """The characters (start, end) of a part of a text.

    Raises:
      UserError: the part is not in the text, or a string occurs more than once.
    """
    if part is None or isinstance(part, str):
        if not part:
            return []
        count = sum(text.startswith(part, i) for i in range(len(text)))
        if count != 1:
            how = "is not in" if not count else f"occurs {count} times in"
            hint = "" if not count else ": give the characters (start, end)"
            raise UserError(f"{part!r} {how} {_short(text)}{hint}")
        start = text.index(part)
        return [(start, start + len(part))]
    if isinstance(part, Sequence) and len(part) == 2 and all(isinstance(end, (int, np.integer)) for end in part):
        start, end = map(int, part)
        if not 0 <= start < end <= len(text):
            raise UserError(f"the characters ({start}, {end}) are not a part of {_short(text)}, which has {len(text)}")
        return [(start, end)]
    if isinstance(part, Sequence) and all(isinstance(piece, Sequence) for piece in part):
        return [span for piece in part for span in character_spans(text, piece)]
    raise UserError(f"{part!r} is not a part of a text: give a string, (start, end), or a list of these")


def span_masks(
    name: str,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    spans: Mapping[str, Sequence[Part]],
    shape: tuple[int, int],
    context: int | None,
) -> dict[str, Bool[np.ndarray, "example pos"]]:
    """The tokens of each named part. A token belongs to a part if it covers one of its characters.

    Args:
      name: the name of the set, for messages.
      tokenizer: the tokenizer. The tokens begin with BOS if it has one.
      texts: the texts.
      spans: the part of each text, for each name.
      shape: (examples, positions) of the result.
      context: where texts are cut.

    Raises:
      UserError: there is not one part for each text, a part is not in its text, or `context` cuts it.
    """
    bos = int(tokenizer.bos_id is not None)
    encodings = tokenizer.exact.encode_batch(list(texts), add_special_tokens=False) if spans else []
    offsets = [np.asarray(encoding.offsets, np.int64).reshape(-1, 2) for encoding in encodings]
    found: dict[str, np.ndarray] = {}
    for span, parts in spans.items():
        if len(parts) != len(texts):
            raise UserError(f"{name}: the span {span!r} has {len(parts)} entries for {len(texts)} texts")
        mask = found[span] = np.zeros(shape, bool)
        for row, (text, part) in enumerate(zip(texts, parts, strict=True)):
            try:
                characters = character_spans(text, part)
            except UserError as error:
                raise UserError(f"{name}, span {span!r} of example {row}: {error}") from None
            begins, ends = offsets[row].T
            for start, end in characters:
                at = bos + np.flatnonzero((begins < end) & (ends > start))
                if not len(at):
                    raise UserError(f"{name}: no token covers the span {span!r} of example {row}, {text[start:end]!r}")
                if at[-1] >= shape[1] or (context is not None and at[-1] >= context):
                    raise UserError(
                        f"{name}: context={context} cuts example {row} before the end of its span {span!r}, which "
                        f"ends at token {at[-1]}: give a longer context, or leave the example out"
                    )
                mask[row, at] = True
    return found


def with_token_labels(
    data: LabelledTokens, spans: Mapping[str, str], otherwise: str | None = None
) -> LabelledTokens:  # fmt: skip
    """Classes of tokens from spans: the tokens of a span get the class that it stands for.

    Args:
      data: the examples, with spans.
      spans: the span of each class, by the name of the class.
      otherwise: the class of all other tokens that can be read. None: they have no class.

    Raises:
      UserError: there is no such class or span, or a token is in the spans of two classes.

    Example:
        data = with_token_labels(data, {"True": "lie"}, otherwise="False")
    """
    for label in (*spans, *(() if otherwise is None else (otherwise,))):
        if label not in data.classes:
            raise UserError(f"{data.name} has no class {label!r}; its classes are {', '.join(data.classes) or 'none'}")
    labels = np.full(data.tokens.shape, -1, np.int32)
    for label, span in spans.items():
        if span not in data.spans:
            raise UserError(f"{data.name} has no span {span!r}; it has {', '.join(data.spans) or 'none'}")
        inside = data.spans[span] & data.readable
        if (twice := (inside & (labels >= 0)).any(axis=1)).any():
            raise UserError(f"{data.name}: a token of example {int(np.argmax(twice))} is in the spans of two classes")
        labels[inside] = data.classes.index(label)
    if otherwise is not None:
        labels[data.readable & (labels < 0)] = data.classes.index(otherwise)
    return dataclasses.replace(data, token_labels=labels)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
