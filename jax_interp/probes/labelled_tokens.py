"""`LabelledTokens`: labelled texts as tokens. It is what probes are fitted on and judged on.

data = tokenized(tokenizer, texts, labels, groups=cities)
data = from_tokens(tokens, mask, label=lambda tokens: tokens == quote)
data.take(train)                        some of the examples
data.classes                            the names of the labels
data.describe()                         counts of examples, classes, groups, repeated and left-out rows
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledTokens:
    """Examples: token sequences of one length with their labels. Padding is at the end of a row, or at its start.

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
      left_out: the number of rows of the source that are not examples, because they had no text or no label.

    Raises:
      UserError: shapes differ, padding stands between real tokens, a number names no class or no example, or a target
        is not finite.
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
    left_out: int = 0

    def __post_init__(self) -> None:
        _check_shapes(self)
        _check_mask(self)
        _check_labels(self)

    @property
    def repeated(self) -> int:
        """The number of examples whose tokens are also those of an earlier example."""
        return len(self) - len({row.tobytes() for row in np.where(self.mask, self.tokens, -1)})

    def counts(self) -> dict[str, int]:
        """The number of examples of each class. Empty for a regression."""
        if not self.classes:
            return {}
        return dict(zip(self.classes, np.bincount(self.labels, minlength=len(self.classes)).tolist(), strict=True))

    def describe(self) -> str:
        """One line for a person: how many examples, classes, groups and pairs, and what was repeated or left out."""
        of_class = ", ".join(f"{count} {name}" for name, count in self.counts().items()) or "real targets"
        groups = len(self) if self.groups is None else len(np.unique(self.groups))
        pairs = "" if self.pairs is None else f", {len(self.pairs)} pairs"
        return (
            f"{self.name}: {len(self)} examples ({of_class}) of up to {self.tokens.shape[1]} tokens in {groups} groups"
            f"{pairs}; {self.repeated} repeated, {self.left_out} rows left out"
        )

    def ordered(self, classes: Sequence[str]) -> LabelledTokens:
        """The same examples with their classes in this order. The second of two classes is the positive one.

        Raises:
          UserError: these are not the classes.

        Example:
            data = data.ordered(("honest", "deceptive"))
        """
        if sorted(classes) != sorted(self.classes):
            raise UserError(f"{self.name} has the classes {', '.join(self.classes)}, not {', '.join(classes)}")
        new = np.asarray([*map(list(classes).index, self.classes), -1], np.int32)
        tokens = None if self.token_labels is None else new[self.token_labels]
        return dataclasses.replace(self, labels=new[self.labels], classes=tuple(classes), token_labels=tokens)

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


def _check_shapes(data: LabelledTokens) -> None:
    shape, n = np.shape(data.tokens), len(data.tokens)
    if len(shape) != 2 or not np.issubdtype(data.tokens.dtype, np.integer):
        raise UserError(
            f"{data.name}: tokens are {data.tokens.dtype}{list(shape)}, and must be integers [example, pos]"
        )
    by_token = {"mask": data.mask, "readable": data.readable, "token_labels": data.token_labels}
    by_token |= {f"the span {name!r}": span for name, span in data.spans.items()}
    for what, array in by_token.items():
        if array is not None and np.shape(array) != shape:
            raise UserError(f"{data.name}: {what} has shape {np.shape(array)}, and the tokens have {shape}")
    by_example = {"labels": data.labels, "groups": data.groups, "texts": data.texts or None}
    by_example |= {f"the column {name!r}": column for name, column in data.columns.items()}
    for what, column in by_example.items():
        if column is not None and len(column) != n:
            raise UserError(f"{data.name}: {what} has {len(column)} entries for {n} examples")
    pairs = data.pairs
    if pairs is not None and len(pairs) and (np.shape(pairs)[1:] != (2,) or pairs.min() < 0 or pairs.max() >= n):
        raise UserError(f"{data.name}: pairs must be [pair, 2], the numbers of two of the {n} examples")


def _check_mask(data: LabelledTokens) -> None:
    for what, mask in {"mask": data.mask, "readable": data.readable, **data.spans}.items():
        if np.asarray(mask).dtype != bool:
            raise UserError(f"{data.name}: {what} is {np.asarray(mask).dtype}, and must be bool")
    if (outside := (data.readable & ~data.mask).any(axis=1)).any():
        raise UserError(f"{data.name}: padding of example {int(np.argmax(outside))} is readable")
    begins = (np.diff(data.mask.astype(np.int8), axis=1, prepend=0) == 1).sum(axis=1)
    if (wrong := begins != 1).any():
        what = "has padding between real tokens" if begins[int(np.argmax(wrong))] else "has no real token"
        raise UserError(f"{data.name}: example {int(np.argmax(wrong))} {what}: see its mask")


def _check_labels(data: LabelledTokens) -> None:
    if not data.classes:
        if not np.issubdtype(np.asarray(data.labels).dtype, np.floating) or not np.isfinite(data.labels).all():
            raise UserError(f"{data.name}: labels without classes are the targets of a regression: finite floats")
        return
    if not np.issubdtype(np.asarray(data.labels).dtype, np.integer):
        raise UserError(f"{data.name}: labels are {np.asarray(data.labels).dtype}; give numbers of {data.classes}")
    for what, numbers, least in (("label", data.labels, 0), ("token label", data.token_labels, -1)):
        if numbers is not None and numbers.size and not least <= numbers.min() <= numbers.max() < len(data.classes):
            raise UserError(f"{data.name}: a {what} is not the number of one of {len(data.classes)} classes")
