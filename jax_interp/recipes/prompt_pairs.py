"""Pairs of prompts from a task or from a table, as tokens of a model. Commands that compare two runs read them here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jax_interp.circuits.contrast import make_contrast
from jax_interp.circuits.metrics import LogitDifference
from jax_interp.circuits.tasks import Examples, find_task
from jax_interp.circuits.tasks.wording import EncodedPairs, Prompt, encode_pairs, texts
from jax_interp.core.errors import UserError
from jax_interp.data.labelled import read_columns
from jax_interp.data.tokenizer import Tokenizer

COLUMNS = ("clean", "corrupted", "answer", "other")
"""The columns of a table. An answer is one token, with its leading space if it has one."""

Row = Mapping[str, str]


def prompt_pairs(tokenizer: Tokenizer, task: str, table: Path | None, n: int, seed: int) -> Examples:
    """The prompts of a task, or the rows of a table.

    Args:
      tokenizer: the model's tokenizer.
      task: the name of the task, if there is no table.
      table: a file with the columns clean, corrupted, answer and other (see `read_pairs`).
      n: the number of pairs. Of a table, the first ones.
      seed: of the task's draw.

    Raises:
      UserError: there is no such task or column, a pair is not aligned, or an answer is several tokens.
    """
    if table is None:
        return find_task(task).sample(tokenizer, n, seed)
    return encode_rows(tokenizer, read_pairs(table)[:n])


def read_pairs(table: Path) -> list[Row]:
    """The rows of a table of pairs: a file in CSV, JSON lines or Parquet, with the columns of `COLUMNS`.

    Raises:
      UserError: the file cannot be read, has no rows or lacks a column, or a cell has no text.
    """
    columns = read_columns(table)
    if missing := [name for name in COLUMNS if name not in columns]:
        has = ", ".join(columns) or "none"
        raise UserError(f"{table} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)} and has {has}")
    given = {name: list(columns[name]) for name in COLUMNS}
    for name, values in given.items():
        if bad := [row for row, value in enumerate(values, 1) if not isinstance(value, str) or not value]:
            raise UserError(f"{table} has no text in the column {name!r} of row {bad[0]}")
    rows: list[Row] = [dict(zip(COLUMNS, cells)) for cells in zip(*given.values())]
    if not rows:
        raise UserError(f"{table} has no rows")
    return rows


def encode_rows(tokenizer: Tokenizer, rows: Sequence[Row], *, bos: bool = True) -> Examples:
    """Pairs as tokens. Shorter prompts are padded on the left, so that all end in the last column.

    The metric is the logit of the answer minus that of the other token.

    Args:
      tokenizer: the model's tokenizer.
      rows: texts by column.
      bos: put BOS first, where the tokenizer has one.

    Raises:
      UserError: the prompts of a row differ in their number of tokens, or an answer is not one token. The message names
        the row if there are several.
    """
    ids: list[list[int]] = [[], []]
    for number, row in enumerate(rows, 1):
        try:
            for side, name in zip(ids, COLUMNS[2:]):
                side.append(tokenizer.id_of(row[name]))
            _encoded(tokenizer, [row], bos)  # the message of a pair by itself
        except UserError as error:
            raise UserError(f"row {number}: {error}" if len(rows) > 1 else str(error)) from error
    sides, encoded = _encoded(tokenizer, rows, bos)
    metric = LogitDifference(jnp.asarray(ids[0], jnp.int32), jnp.asarray(ids[1], jnp.int32))
    contrast = make_contrast(encoded.clean, encoded.corrupted, metric, mask=encoded.mask)
    answers = np.asarray(ids[0], np.int32)
    return Examples(contrast, texts(sides[0]), texts(sides[1]), encoded.positions, {}, answers)


def _encoded(tokenizer: Tokenizer, rows: Sequence[Row], bos: bool) -> tuple[list[list[Prompt]], EncodedPairs]:
    sides = [[Prompt(row[name], ()) for row in rows] for name in COLUMNS[:2]]
    return sides, encode_pairs(tokenizer, sides[0], sides[1], bos=None if bos else False)
