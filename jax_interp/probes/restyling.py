"""Style shift: the same texts, written in another way.

    others = restyled(data, tokenizer)                     one set for each style, for `evaluate_probes(others=...)`
    both = augmented(data, *others.values())               to fit on all styles
    evaluate_probes(..., both, others=parts_of(both, "style"))

The meaning and the label stay, so a lower AUROC is a failure of the probe. A probe with AUROC .998 on clean text was
reported to collapse on restyled text, and to reach .979-.983 after training on restyled text (arXiv:2605.27958).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.joined_sets import joined
from jax_interp.probes.labelled_texts import tokenized
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.splits import leaking_groups

ORIGINAL = "original"
"""The column of a restyled set that says which example of the original set each example is. Reports judge it on the
examples whose original is in the test part."""
STYLE = "style"
"""The column of an augmented set that says the style of each example."""
CLEAN = "clean"

SYNONYMS = {
    "is in": "is located in",
    "is not in": "is not located in",
    "city": "town",
    "larger": "bigger",
    "smaller": "lesser",
    "means": "signifies",
    "word": "term",
    "It is the case": "It is true",
}


def with_synonyms(text: str) -> str:
    """Words and phrases of `SYNONYMS`, replaced."""
    phrases = sorted(SYNONYMS, key=len, reverse=True)
    return re.sub(rf"\b({'|'.join(map(re.escape, phrases))})\b", lambda found: SYNONYMS[found[0]], text)


STYLES: Mapping[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "lower case": str.lower,
    "other quotes": lambda text: text.translate(str.maketrans("'\"", "\"'")),
    "no final punctuation": lambda text: text.rstrip(".!?;"),
    "prefix": lambda text: f"Note: {text}",
    "synonyms": with_synonyms,
}
"""The styles: from a text to a text of the same meaning."""


def restyled(
    data: LabelledTokens, tokenizer: Tokenizer, styles: Mapping[str, Callable[[str], str]] = STYLES
) -> dict[str, LabelledTokens]:
    """The set in each style. Texts that a style does not change are left out, and so is a style that changes no text of
    some class. Spans and labels of tokens are not carried over.

    Args:
      data: a set that was made from texts.
      tokenizer: the tokenizer it was made with.
      styles: functions from text to text, by name.

    Raises:
      UserError: the set has no texts, or no classes.
    """
    if not data.texts or not data.classes:
        raise UserError(f"{data.name} has no {'classes' if data.texts else 'texts'}: restyling needs both")
    out, groups = {}, leaking_groups(data)
    for name, style in styles.items():
        texts = [style(text) for text in data.texts]
        rows = np.array([i for i, text in enumerate(texts) if text != data.texts[i]], int)
        if len(np.unique(data.labels[rows])) < len(data.classes):
            continue
        labels = [data.classes[label] for label in data.labels[rows].tolist()]
        found = tokenized(
            tokenizer, [texts[row] for row in rows], labels, name=f"{data.name}, {name}", groups=groups[rows].tolist()
        )
        columns = {ORIGINAL: tuple(rows.tolist()), STYLE: (name,) * len(rows)}
        out[name] = dataclasses.replace(found.ordered(data.classes), columns=columns)
    return out


def augmented(data: LabelledTokens, *styles: LabelledTokens) -> LabelledTokens:
    """One set of the texts and their restyled versions. All versions of a text are in the group of the original.

    Args:
      data: the original set.
      styles: sets from `restyled`.

    Raises:
      UserError: a set is not from `restyled`, or padding is on the left.
    """
    for one in styles:
        if ORIGINAL not in one.columns or one.classes != data.classes:
            raise UserError(f"{one.name} is not a restyled version of {data.name}: make it with `restyled`")
    names = [(CLEAN,) * len(data), *(tuple(one.columns[STYLE]) for one in styles)]
    groups = leaking_groups(data)
    of_group = [groups, *(groups[np.asarray(one.columns[ORIGINAL], int)] for one in styles)]
    return dataclasses.replace(
        joined((data, *styles), f"{data.name} in {1 + len(styles)} styles"),
        groups=np.concatenate(of_group),
        columns={STYLE: tuple(name for part in names for name in part)},
    )


def parts_of(data: LabelledTokens, column: str) -> dict[str, LabelledTokens]:
    """The examples with each value of a column, as sets of their own, for `evaluate_probes(others=...)`. There they are
    judged on test examples only.

    Raises:
      UserError: there is no such column.
    """
    if column not in data.columns:
        raise UserError(f"{data.name} has no column {column!r}; it has {', '.join(data.columns) or 'none'}")
    values = np.asarray([str(value) for value in data.columns[column]])
    out = {}
    for value in dict.fromkeys(values.tolist()):
        rows = np.flatnonzero(values == value)
        part = data.take(rows)
        columns = {**part.columns, ORIGINAL: tuple(rows.tolist())}
        out[value] = dataclasses.replace(part, name=f"{data.name}, {value}", columns=columns)
    return out
