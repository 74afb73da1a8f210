"""Tables of prompt pairs: aligned tokens that end together, or one error that names the row."""

from __future__ import annotations

import json

import numpy as np
import pytest

from jax_interp import load
from jax_interp.core.errors import UserError
from jax_interp.recipes.prompt_pairs import COLUMNS, encode_rows, prompt_pairs, read_pairs

ROWS = [
    ("def f(data):\n    return len(", "def f(name):\n    return len(", "data", "name"),
    ("x = [(1, 2), (3, 4", "x = [(1, 2), [3, 4", ")", "]"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return load("stdlib-small")[1]


def csv_table(tmp_path, rows, columns="clean,corrupted,answer,other"):
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join([columns, *quoted]) + "\n")
    return path


def as_dicts(rows):
    return [dict(zip(COLUMNS, row)) for row in rows]


def test_rows_become_prompts_that_end_together(tmp_path, tokenizer):
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in as_dicts(ROWS)))
    assert read_pairs(lines) == read_pairs(csv_table(tmp_path, ROWS)) == as_dicts(ROWS)
    for examples, bos in ((prompt_pairs(tokenizer, "", lines, 5, 0), True), (encode_rows(tokenizer, as_dicts(ROWS), bos=False), False)):  # fmt: skip  # noqa: E501
        contrast = examples.contrast
        assert contrast.mask is not None
        for i, (clean, corrupted, answer, other) in enumerate(ROWS):
            real = np.asarray(contrast.mask[i])
            assert real[-1]
            assert np.asarray(contrast.clean[i])[real].tolist() == tokenizer.encode(clean, bos=bos)
            assert np.asarray(contrast.corrupted[i])[real].tolist() == tokenizer.encode(corrupted, bos=bos)
            assert int(contrast.metric.answer[i]) == examples.answers[i] == tokenizer.id_of(answer)
            assert int(contrast.metric.other[i]) == tokenizer.id_of(other)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (ROWS, "clean,corrupted,answer,wrong", "no column 'other'; it needs .* has clean, corrupted, answer, wrong"),
        ([], "clean,corrupted,answer,other", "no column 'clean'|has no rows"),
        ([ROWS[1], ("a", "a b c d", ")", "]")], "clean,corrupted,answer,other", "row 2: .* not aligned"),
        ([ROWS[1], (*ROWS[0][:3], "no such token")], "clean,corrupted,answer,other", "row 2: 'no such token'"),
        ([(*ROWS[0][:3], "no such token")], "clean,corrupted,answer,other", "^'no such token'"),
        ([(*ROWS[0][:3], "")], "clean,corrupted,answer,other", "no text in the column 'other' of row 1"),
        ([ROWS[0][:3]], "clean,corrupted,answer,other", "row 1|other"),
    ],
)
def test_wrong_tables_are_refused_by_row(tmp_path, tokenizer, rows, columns, message):
    with pytest.raises(UserError, match=message):
        prompt_pairs(tokenizer, "", csv_table(tmp_path, rows, columns), 9, 0)


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "pairs.txt").write_text("x")
    (tmp_path / "pairs.jsonl").write_text('{"clean": "a"\n')
    for name, message in (("pairs.txt", "is not a table"), ("none.csv", "cannot be read"), ("pairs.jsonl", "JSON")):
        with pytest.raises(UserError, match=message):
            read_pairs(tmp_path / name)
