"""Labelled examples from tables: CSV, JSON Lines, Parquet, or columns in memory.

data = from_table(tokenizer, "cities.csv", Columns(text="statement", group="city"))
data = from_table(tokenizer, "facts.jsonl", Columns(text=("statement", "negation")))        contrast pairs
data = from_table(tokenizer, "answers.jsonl", Columns(spans=("answer",)), context=256)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.data.labelled import LABEL_COLUMNS, TEXT_COLUMNS, read_columns
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.probes.class_numbers import is_missing
from jax_interp.probes.labelled_chats import PLAIN, ChatFormat, written_chats
from jax_interp.probes.labelled_texts import tokenized
from jax_interp.probes.labelled_tokens import LabelledTokens

UNLABELLED = "unlabelled"
"""The class of examples that have no labels."""


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns of a table mean.

    Args:
      text: the column of texts, or of conversations. Two columns, such as ("statement", "negation"), give a contrast
        pair for each row: the first text has the label of the row, the second one the other label. None: the first of
        "text", "prompt", "sentence" and "statement" that there is.
      label: the column of labels. None: "label" or "target".
      group: the column of what leaks between rows, such as the city of a statement.
      pair: the column that two rows share if they are a contrast pair.
      spans: columns with a part of the text: a string that occurs once in it, or (in JSON) characters [start, end] or
        a list of these. The column's name is the name of the span. Empty: the row has no such part.
      positive: the label of the positive class, if there are two. None: the later one in the order of strings.
      regression: whether the labels are real numbers.
    """

    text: str | tuple[str, str] | None = None
    label: str | None = None
    group: str | None = None
    pair: str | None = None
    spans: tuple[str, ...] = ()
    positive: str | None = None
    regression: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.text, tuple) and (self.pair is not None or self.spans or self.regression):
            raise UserError(f"text={self.text} makes a pair of each row: give no pair, spans or regression with it")


def from_table(
    tokenizer: Tokenizer,
    table: Path | str | Mapping[str, Sequence[Any]],
    columns: Columns = Columns(),
    *,
    name: str | None = None,
    context: int | None = None,
    chat: ChatFormat = PLAIN,
    labelled: bool = True,
) -> LabelledTokens:
    """Make examples from the rows of a table. All columns are kept in `LabelledTokens.columns`.

    Rows without a text or without a label are left out, and counted in `left_out`. Rows with equal texts stay, in one
    group (`repeated` counts them).

    Args:
      tokenizer: the tokenizer of the model.
      table: a `.csv`, `.csv.zst`, `.jsonl` or `.parquet` file; or columns by name.
      columns: what the columns mean.
      name: the name of the set in tables. None: the name of the file.
      context: as in `tokenized`.
      chat: how conversations are written, if the texts are conversations.
      labelled: whether the table has labels. False: it is a control set. Labels are not read, and all examples are of
        the one class "unlabelled".

    Raises:
      UserError: the file cannot be read, a column is missing, no row has a text and a label, all have one label, a pair
        has more than two rows or one label, or as in `tokenized`.
    """
    if isinstance(table, Mapping):
        found, name = dict(table), name or "table"
    else:
        found, name = dict(read_columns(table)), name or Path(table).name.split(".")[0]
    if len(lengths := {len(column) for column in found.values()}) > 1:
        raise UserError(f"{name}: its columns have different lengths, {sorted(lengths)}")
    names = _text_columns(name, found, columns)
    if labelled:
        label = found[_named(name, found, columns.label, LABEL_COLUMNS, "labels")]
    else:
        label = [UNLABELLED] * len(found[names[0]])
    whole = [row for row, mark in enumerate(label)
             if not is_missing(mark) and all(not _is_blank(found[text][row]) for text in names)]  # fmt: skip
    if not whole:
        raise UserError(f"{name}: no row has {'both a text and a label' if labelled else 'a text'}")
    if not labelled:
        columns = dataclasses.replace(columns, pair=None, positive=None, regression=False)
    labels = _labels(name, [label[row] for row in whole], whole, columns)
    if len(names) == 2:
        labels += _others(name, labels) if labelled else labels
    elif labelled and not columns.regression and len(set(labels)) < 2:
        raise UserError(f"{name}: all rows with a text have the label {labels[0]!r}: a probe needs two classes")
    rows = whole * len(names)
    column = lambda of: None if of is None else [found[_named(name, found, of, (), "")][row] for row in rows]
    texts, spans = _texts(name, tokenizer, [found[text][row] for text in names for row in whole], chat)
    pairs = np.arange(len(rows)).reshape(2, -1).T if len(names) == 2 else _pairs(name, column(columns.pair), labels)
    spans |= {span: column(span) or [] for span in columns.spans}
    groups = column(columns.group)
    groups = None if groups is None else [None if is_missing(group) else group for group in groups]
    data = tokenized(tokenizer, texts, labels, name=name, groups=groups, pairs=pairs, context=context, spans=spans)
    kept = {of: tuple(values[row] for row in rows) for of, values in found.items()}
    data = dataclasses.replace(data, columns=kept, left_out=len(label) - len(whole))
    return data if columns.positive is None else _with_positive(data, columns.positive)


def _text_columns(name: str, found: Mapping[str, Any], columns: Columns) -> tuple[str, ...]:
    if isinstance(columns.text, tuple):
        return tuple(_named(name, found, text, (), "texts") for text in columns.text)
    return (_named(name, found, columns.text, (*TEXT_COLUMNS, "statement"), "texts"),)


def _named(name: str, found: Mapping[str, Any], asked: str | None, usual: Sequence[str], what: str) -> str:
    names = usual if asked is None else (asked,)
    column = next((column for column in names if column in found), None)
    if column is None:
        of = f" of {what}" if what else ""
        has = ", ".join(map(repr, found)) or "none"
        raise UserError(f"{name} has no column{of} called {' or '.join(map(repr, names))}; it has {has}")
    return column


def _is_blank(text: Any) -> bool:
    return is_missing(text) or (isinstance(text, str) and not text.strip())


def _labels(name: str, labels: list[Any], rows: list[int], columns: Columns) -> list[Any]:
    """Labels as `tokenized` takes them. A whole number is one class, whether it was read as 1, 1.0 or "1"."""
    if not columns.regression:
        as_name = lambda label: str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
        return [as_name(label) for label in labels]
    out = []
    for row, label in zip(rows, labels, strict=True):
        try:
            out.append(float(label))
        except (TypeError, ValueError):
            raise UserError(f"{name}: the label of row {row + 1}, {label!r}, is not a number") from None
    return out


def _others(name: str, labels: list[str]) -> list[str]:
    """The other one of two labels, for each."""
    classes = sorted(set(labels))
    if len(classes) == 1 and classes[0] in ("0", "1", "True", "False"):
        classes = ["0", "1"] if classes[0] in "01" else ["False", "True"]
    if len(classes) != 2:
        raise UserError(f"{name}: the second text has the other one of two labels, and there are {', '.join(classes)}")
    return [classes[label == classes[0]] for label in labels]


def _texts(
    name: str, tokenizer: Tokenizer, texts: list[Any], chat: ChatFormat
) -> tuple[list[str], dict[str, list[Any]]]:
    """The texts, and the spans of their turns if they are conversations."""
    chats = [isinstance(text, (list, tuple)) for text in texts]
    if not any(chats):
        return texts, {}
    if not all(chats):
        raise UserError(f"{name}: some rows have a text and others a conversation: give a set for each")
    written, spans = written_chats(name, tokenizer, texts, chat)
    return written, {**spans}


def _pairs(name: str, column: list[Any] | None, labels: list[Any]) -> np.ndarray | None:
    if column is None:
        return None
    rows: dict[Any, list[int]] = {}
    for row, key in enumerate(column):
        if not is_missing(key):
            rows.setdefault(key, []).append(row)
    for key, pair in rows.items():
        if len(pair) > 2:
            raise UserError(f"{name}: {len(pair)} rows are in the pair {key!r}: a contrast pair has two")
        if len(pair) == 2 and labels[pair[0]] == labels[pair[1]]:
            raise UserError(f"{name}: both rows of the pair {key!r} have the label {labels[pair[0]]!r}")
    found = [pair for pair in rows.values() if len(pair) == 2]
    if not found:
        raise UserError(f"{name}: no two rows share a value of the column of pairs")
    return np.asarray(found, np.int32)


def _with_positive(data: LabelledTokens, positive: str) -> LabelledTokens:
    if len(data.classes) != 2 or positive not in data.classes:
        raise UserError(f"positive={positive!r} must be one of two classes; {data.name} has {', '.join(data.classes)}")
    return data.ordered((next(label for label in data.classes if label != positive), positive))
