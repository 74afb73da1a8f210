"""`LabelledTokens`: labelled texts as tokens. It is what probes are fitted on and judged on.

data = tokenized(tokenizer, texts, labels, groups=cities)
data.take(train)                        some of the examples
data.classes                            the names of the labels
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Examples: token sequences of one length, padded on the right, with their labels.

    Args:
      name: the name of the set in tables.
      tokens: the tokens.
      mask: True at real tokens, BOS included. It is what the model gets.
      readable: True at tokens that a probe may read: not padding, and not BOS.
      labels: the number of each example's class in `classes`; a real number if `classes` is empty (regression).
      classes: the names of the classes. The positive class of a binary probe is the second one.
      groups: the number of each example's group. A split never divides a group. None: each example is its own group.
      pairs: the numbers of the two examples of each contrast pair, such as a statement and its negation.
      spans: named parts of the examples, such as "answer".
      token_labels: the class of each token, -1 where there is none. None: only whole examples have labels.
      columns: further columns of the table that the examples come from, one entry for each example.
      texts: the texts. Empty if the examples were made from tokens.
    """

    name: str
    tokens: Int[np.ndarray, "example pos"]
    mask: Bool[np.ndarray, "example pos"]
    readable: Bool[np.ndarray, "example pos"]
    labels: Int[np.ndarray, " example"] | Float[np.ndarray, " example"]
    classes: tuple[str, ...]
    groups: Int[np.ndarray, " example"] | None = None
    pairs: Int[np.ndarray, "pair 2"] | None = None
    spans: Mapping[str, Bool[np.ndarray, "example pos"]] = dataclasses.field(default_factory=dict)
    token_labels: Int[np.ndarray, "example pos"] | None = None
    columns: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Bool[np.ndarray, " example"] | Int[np.ndarray, " row"]) -> LabelledTokens:
        """Some of the examples. Pairs of which one example is left out are left out too."""
        index = np.arange(len(self))[np.asarray(rows)]
        at = lambda array: None if array is None else array[index]
        pairs = None
        if self.pairs is not None:
            new = np.full(len(self), -1)
            new[index] = np.arange(len(index))
            pairs = new[self.pairs]
            pairs = pairs[(pairs >= 0).all(axis=1)]
        return dataclasses.replace(
            self,
            tokens=self.tokens[index],
            mask=self.mask[index],
            readable=self.readable[index],
            labels=self.labels[index],
            groups=at(self.groups),
            pairs=pairs,
            spans={name: span[index] for name, span in self.spans.items()},
            token_labels=at(self.token_labels),
            columns={name: tuple(column[i] for i in index.tolist()) for name, column in self.columns.items()},
            texts=tuple(self.texts[i] for i in index.tolist()) if self.texts else (),
        )


def tokenized(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    labels: Sequence[Any],
    *,
    name: str = "examples",
    groups: Sequence[Any] | None = None,
    pairs: Int[np.ndarray, "pair 2"] | None = None,
    context: int | None = None,
) -> LabelledTokens:
    """Make examples from texts. A text begins with BOS if the tokenizer has one.

    Args:
      tokenizer: the tokenizer of the model.
      texts: the texts.
      labels: the label of each text. Labels with the same `str` are one class; the classes are sorted as strings, so
        False comes before True and 0 before 1. Floats are the targets of a regression.
      name: the name of the set in tables.
      groups: what leaks between examples, such as the subject of a statement. Examples of one group stay on one side of
        each split.
      pairs: the numbers of the two examples of each contrast pair.
      context: cut texts after this many tokens, BOS included. None: a text is never cut.

    Raises:
      UserError: the lengths differ, a label is missing, or a text has no token.
    """
    if len(texts) != len(labels) or (groups is not None and len(groups) != len(texts)):
        raise UserError(f"{name}: {len(texts)} texts need as many labels and groups")
    if not texts:
        raise UserError(f"{name}: there is no text")
    missing = [i for i, label in enumerate(labels) if label is None or label != label]
    if missing:
        raise UserError(f"{name}: example {missing[0]} has no label")
    bos = tokenizer.bos_id is not None
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
    numbers, classes = _numbered(labels)
    of_group = None if groups is None else np.unique([str(group) for group in groups], return_inverse=True)[1]
    return LabelledTokens(
        name, tokens, mask, readable, numbers, classes, of_group, pairs=pairs, texts=tuple(texts)
    )  # fmt: skip


def _numbered(labels: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each label, and the names of the classes; floats are kept, and have no classes."""
    if all(isinstance(label, (float, np.floating)) for label in labels):
        return np.asarray(labels, np.float32), ()
    names, numbers = np.unique([str(label) for label in labels], return_inverse=True)
    return numbers.astype(np.int32), tuple(names.tolist())
