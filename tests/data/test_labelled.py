"""Tables of labelled texts: every kind of file gives the same data set, and what is no such table is refused."""

import csv
import io
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from jax_interp.core.errors import UserError
from jax_interp.data.labelled import labelled, read_labelled, tables_in

ROWS = [
    ('a text, with "quotes"\nand a new line', "yes"),
    ("naïve — ünïcode\u2028 separator", "no"),
    ("third", "yes"),
    ("", "no"),
    ("   ", "no"),
    ("no label", ""),
    ("third", "no"),
]


def write(path, rows=ROWS, names=("prompt", "target")):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([names, *rows])
    data = text.getvalue().encode()
    if path.name.endswith(".csv"):
        path.write_bytes(data)
    elif path.name.endswith(".zst"):
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(data)
    elif path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(names, row)), ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    else:
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("name", ["set.csv", "set.csv.zst", "set.jsonl", "set.parquet"])
def test_every_kind_of_file_gives_the_same_data_set(tmp_path, name):
    found = read_labelled(write(tmp_path / name))
    assert found.name == "set"
    assert found.texts == tuple(text for text, _ in ROWS[:3])
    assert found.counts() == {"no": 1, "yes": 2}
    assert [found.classes[i] for i in found.labels] == ["yes", "no", "yes"]
    assert (found.left_out, found.repeated) == (3, 1)


def test_other_columns_are_found_by_name(tmp_path):
    path = write(tmp_path / "x.csv", names=("review", "stars"))
    assert read_labelled(path, text="review", label="stars").counts() == {"no": 1, "yes": 2}
    with pytest.raises(UserError, match="no column of texts called 'text' or 'prompt' or 'sentence'; it has 'review'"):
        read_labelled(path)


def test_labels_of_any_type_and_missing_ones():
    found = labelled("x", ["a", "b", "c", "d", None], [True, False, None, float("nan"), True])
    assert found.counts() == {"False": 1, "True": 1}
    assert found.left_out == 3


def test_the_tables_of_a_directory(tmp_path):
    for name in ("b.csv", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    assert [p.name for p in tables_in(tmp_path)] == ["a.jsonl", "b.csv"]
    assert tables_in(tmp_path / "b.csv") == [tmp_path / "b.csv"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "no column of texts"),
        ("x.csv", b"text,label\n", "no column of texts.*|no row"),
        ("x.csv", b"text,label\na,b,c\n", "more fields than columns in row 1"),
        ("x.csv", b"text,label\n\xff\xfe,b\n", "not UTF-8"),
        ("x.csv", b'text,label\n"a"b,c\n', "not a CSV file"),
        ("x.csv.zst", b"text,label\na,b\n", "not a Zstandard file"),
        ("x.parquet", b"PAR1", "not a readable Parquet file"),
        ("x.jsonl", b"[1]\n", "line 1 of .* is a list"),
        ("x.jsonl", b'{"text": 3, "label": "b"}\n', "row 1 has a int"),
        ("x.xlsx", b"", "is not a table"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_labelled(tmp_path / name)


def test_missing_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path / "none.csv")
    with pytest.raises(UserError, match="no labelled texts"):
        tables_in(tmp_path / "none")
    with pytest.raises(UserError, match="no table"):
        tables_in(tmp_path)
    with pytest.raises(UserError, match="2 texts and 1 labels"):
        labelled("x", ["a", "b"], [1])
