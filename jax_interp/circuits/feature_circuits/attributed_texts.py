"""`AttributedTexts`: texts with two attributes of two values each, one that a classifier should use and one that not.

texts.agreeing()            the texts in which both attributes have the same value: labels cannot tell them apart
texts.balanced(rng, 50)     50 texts of each of the four groups
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.data.labelled import LabelledTexts
from jax_interp.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class AttributedTexts:
    """Tokens, and the value (False, True) of the intended and of the spurious attribute of each text.

    Args:
      tokens: the tokens.
      intended: the attribute that a classifier should tell, such as the profession.
      spurious: the attribute that it should not use, such as the gender.
      mask: False for padding. None: there is none.
    """

    tokens: Int[np.ndarray, "text pos"]
    intended: Bool[np.ndarray, " text"]
    spurious: Bool[np.ndarray, " text"]
    mask: Bool[np.ndarray, "text pos"] | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "intended", "spurious"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        shape = self.tokens.shape
        if len(shape) != 2 or self.intended.shape != shape[:1] or self.spurious.shape != shape[:1]:
            raise UserError(
                f"tokens {list(shape)}, intended {list(self.intended.shape)}, spurious {list(self.spurious.shape)}: "
                "give tokens [text, pos] and one value of each attribute for each text"
            )
        for name in ("intended", "spurious"):
            values = getattr(self, name)
            if not np.isin(values, (0, 1)).all():
                raise UserError(f"{name} has the values {np.unique(values).tolist()}: give False and True")
            object.__setattr__(self, name, values.astype(bool))
        if self.mask is not None:
            object.__setattr__(self, "mask", np.asarray(self.mask, bool))
            if self.mask.shape != shape or not self.mask.any(axis=1).all():
                raise UserError(f"the mask {list(self.mask.shape)} does not fit {list(shape)}, or a text has no token")

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Int[np.ndarray, " row"] | Bool[np.ndarray, " text"]) -> AttributedTexts:
        """Some of the texts."""
        mask = None if self.mask is None else self.mask[index]
        return AttributedTexts(self.tokens[index], self.intended[index], self.spurious[index], mask)

    def agreeing(self) -> AttributedTexts:
        """The texts in which both attributes have the same value."""
        return self.rows(self.intended == self.spurious)

    def balanced(self, rng: np.random.Generator, per_group: int | None = None) -> AttributedTexts:
        """Equally many texts of each of the four groups, in random order.

        Args:
          rng: draws the texts.
          per_group: texts of each group. None: as many as the smallest group has.

        Raises:
          UserError: a group has fewer texts, or none.
        """
        sizes = self.groups()
        n = min(sizes.values()) if per_group is None else per_group
        if n < 1 or n > min(sizes.values()):
            raise UserError(f"{n} texts of each group were asked for; there are {sizes} (intended, spurious)")
        group = 2 * self.intended.astype(int) + self.spurious
        chosen = [rng.choice(np.flatnonzero(group == g), n, replace=False) for g in range(4)]
        return self.rows(rng.permutation(np.concatenate(chosen)))

    def split(self, rng: np.random.Generator, fraction: float = 0.5) -> tuple[AttributedTexts, AttributedTexts]:
        """Two parts without a text in common. `fraction` of the texts are in the first."""
        order = rng.permutation(len(self))
        cut = round(fraction * len(self))
        return self.rows(order[:cut]), self.rows(order[cut:])

    def groups(self) -> dict[tuple[int, int], int]:
        """The number of texts with each (intended, spurious)."""
        return {
            (i, s): int(((self.intended == bool(i)) & (self.spurious == bool(s))).sum()) for i in (0, 1) for s in (0, 1)
        }


def from_tables(
    intended: LabelledTexts,
    spurious: LabelledTexts,
    tokenizer: Tokenizer,
    *,
    classes: Sequence[str] | None = None,
    values: Sequence[str] | None = None,
    context: int = 128,
) -> AttributedTexts:
    """Texts of a table with two columns of labels, such as Bias in Bios with the profession and the gender.

    Args:
      intended: the texts with the label that a classifier should tell. It may have more than two classes.
      spurious: the same texts with the other label. Texts that only one of the two has are left out.
      tokenizer: its BOS is put first, if it has one.
      classes: the two classes to use, the one that counts as False first, such as ("21", "13") for professor and
        nurse. None: there are only two.
      values: the two values of the spurious label, the one that counts as False first. None: there are only two.
      context: texts are cut after so many tokens, BOS included. Shorter texts are padded on the right.

    Raises:
      UserError: a class does not exist or more than two exist, or no text is left.

    Example:
        read = lambda column: read_labelled("bios.parquet", text="hard_text", label=column)
        bios = from_tables(read("profession"), read("gender"), tokenizer, classes=("21", "13"), values=("0", "1"))
        train, test = bios.split(rng)
        run = shift(model, train.agreeing(), test.balanced(rng), saes, judge, ShiftConfig("blocks.4.resid_post"))
    """
    if context < 2:
        raise UserError(f"context={context} leaves no token beside BOS: at least 2")
    first, other = _of_text(intended, classes, "classes"), _of_text(spurious, values, "values")
    texts = [text for text in first if text in other]
    if not texts:
        raise UserError(f"no text of {intended.name!r} and {spurious.name!r} has one of the two labels of both")
    encoded = [ids[:context] for ids in tokenizer.encode_batch(texts, bos=tokenizer.bos_id is not None)]
    length = max(map(len, encoded))
    tokens, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    return AttributedTexts(tokens, np.asarray([first[t] for t in texts]), np.asarray([other[t] for t in texts]), mask)


def _of_text(table: LabelledTexts, pair: Sequence[str] | None, what: str) -> dict[str, bool]:
    """text -> whether it has the second of two labels. Texts with other labels are left out."""
    pair = table.classes if pair is None else pair
    if len(pair) != 2 or not set(pair) <= set(table.classes):
        raise UserError(f"{table.name} has the labels {', '.join(table.classes[:10])}: give two of them as {what}=")
    numbers = [table.classes.index(label) for label in pair]
    return {
        text: bool(label == numbers[1])
        for text, label in zip(table.texts, table.labels, strict=True)
        if label in numbers
    }
