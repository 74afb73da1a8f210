"""`tokenized`: labelled examples from texts.

data = tokenized(tokenizer, ["2+2=4", "2+2=5"], [True, False], spans={"answer": ["4", "5"]})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.class_numbers import joined_groups, numbered
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.text_spans import span_masks


def tokenized(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    name: str = "examples",
    groups: Sequence[Any] | None = None,
    pairs: Int[np.ndarray, "pair 2"] | None = None,
    context: int | None = None,
    spans: Mapping[str, Sequence[Any]] | None = None,
) -> LabelledTokens:
    """Make examples from texts. A text begins with BOS if the tokenizer has one.

    Examples with equal tokens, and the two examples of a pair, are always in one group: they leak.

    Args:
      tokenizer: the tokenizer of the model.
      texts: the texts.
      labels: the label of each text: strings, integers or booleans name classes; floats are the targets of a
        regression. Classes are sorted, so False comes before True and 0 before 1 (`LabelledTokens.ordered` gives
        another order).
      name: the name of the set in tables.
      groups: what leaks between examples, such as the subject of a statement. Examples of one group stay on one side of
        each split. None as an entry: the example is alone.
      pairs: the numbers of the two examples of each contrast pair.
      context: cut texts after this many tokens, BOS included. None: a text is never cut.
      spans: named parts of the texts, each with one entry for each text: a string that occurs once in it, characters
        (start, end), a list of these, or None.

    Raises:
      UserError: the lengths differ, a label is missing, a text has no token, or a part is not in its text or is cut.

    Example:
        tokenized(tokenizer, ["2+2=4", "2+2=5"], [True, False], spans={"answer": ["4", "5"]})
    """
    if len(texts) != len(labels) or (groups is not None and len(groups) != len(texts)):
        raise UserError(f"{name}: {len(texts)} texts need as many labels and groups")
    if not texts:
        raise UserError(f"{name}: there is no text")
    if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
        raise UserError(f"{name}: example {wrong[0]} is a {type(texts[wrong[0]]).__name__}, not a text")
    numbers, classes = numbered(name, labels)
    bos = tokenizer.bos_id is not None
    if context is not None and context <= bos:
        raise UserError(f"context={context} leaves no token of a text: give at least {1 + bos}")
    encoded = [ids[:context] for ids in tokenizer.encode_batch(list(texts), bos=bos)]
    if empty := [i for i, ids in enumerate(encoded) if len(ids) <= bos]:
        raise UserError(f"{name}: the text of example {empty[0]}, {texts[empty[0]][:40]!r}, has no token")
    length = max(map(len, encoded))
    tokens = np.full((len(texts), length), tokenizer.bos_id if bos else 0, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    readable = mask.copy()
    readable[:, : int(bos)] = False
    pairs = None if pairs is None else np.asarray(pairs, np.int32)
    by_name = None if groups is None else [None if group is None else str(group) for group in groups]
    of_group = joined_groups(len(texts), by_name, map(tuple, encoded), pairs=_checked(name, len(texts), pairs))
    parts = span_masks(name, tokenizer, texts, spans or {}, tokens.shape, context)
    return LabelledTokens(
        name, tokens, mask, readable, numbers, classes, of_group, pairs=pairs, spans=parts, texts=tuple(texts)
    )


def _checked(name: str, n: int, pairs: np.ndarray | None) -> np.ndarray | None:
    """The pairs. Raises UserError if they are not the numbers of two examples each."""
    if pairs is not None and (
        pairs.ndim != 2 or pairs.shape[1] != 2 or (len(pairs) and not 0 <= pairs.min() <= pairs.max() < n)
    ):
        raise UserError(f"{name}: pairs must be [pair, 2], the numbers of two of the {n} examples")
    return pairs
