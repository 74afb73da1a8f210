"""Tables and conversations as labelled examples: the same set from every format, pairs, spans of turns, refusals."""

from __future__ import annotations

import csv
import functools
import json

import numpy as np
import pytest

from jax_interp import UserError
from jax_interp.data.tokenizer import train_bpe
from jax_interp.probes import CHATML, ChatFormat, Columns, from_chats, from_table

ROWS = [
    {"statement": "Paris is in France.", "label": 1, "city": "Paris", "land": "France", "n": 0},
    {"statement": "Paris is in Italy.", "label": 0, "city": "Paris", "land": "Italy", "n": 0},
    {"statement": "Rome is in Italy.", "label": 1, "city": "Rome", "land": "Italy", "n": 1},
    {"statement": "Rome is in France.", "label": 0, "city": "Rome", "land": "France", "n": 1},
    {"statement": "", "label": 0, "city": "Bonn", "land": "", "n": 2},
    {"statement": "Bonn is in Italy.", "label": None, "city": "Bonn", "land": "Italy", "n": 2},
    {"statement": "Paris is in France.", "label": 1, "city": None, "land": "", "n": 3},
]
TABLE = {name: [row[name] for row in ROWS] for name in ROWS[0]}
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "So long."}]  # fmt: skip


@functools.cache
def tokenizer():
    return train_bpe([row["statement"] for row in ROWS] * 3, 280)


def write(path, suffix):
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif suffix == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(TABLE), path)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "memory"])
def test_every_format_gives_the_same_examples(suffix, tmp_path):
    path = tmp_path / f"cities.{suffix}"
    if suffix != "memory":
        write(path, suffix)
    columns = Columns(group="city", spans=("land",), positive="0")
    data = from_table(tokenizer(), TABLE if suffix == "memory" else path, columns)
    assert data.texts == tuple(ROWS[i]["statement"] for i in (0, 1, 2, 3, 6))
    assert data.classes == ("1", "0")
    assert data.labels.tolist() == [0, 1, 0, 1, 0]
    assert (data.left_out, data.repeated) == (2, 1)
    assert data.groups is not None
    assert data.groups.tolist() == [0, 0, 1, 1, 0]  # the repeated text joins the group of Paris
    assert data.columns["land"][:4] == ("France", "Italy", "Italy", "France")
    assert data.spans["land"].any(axis=1).tolist() == [True] * 4 + [False]
    assert "5 examples (3 1, 2 0)" in data.describe()
    assert "1 repeated, 2 rows left out" in data.describe()


def test_pairs_are_two_rows_or_two_columns():
    by_rows = from_table(tokenizer(), TABLE, Columns(pair="n"))
    assert by_rows.pairs is not None
    assert by_rows.pairs.tolist() == [[0, 1], [2, 3]]
    assert by_rows.groups is not None
    assert by_rows.groups.tolist() == [0, 0, 1, 1, 0]
    table = {"a": ["Paris is big.", "Rome is big."], "b": ["Paris is not big.", "Rome is not big."], "label": [1, 1]}
    by_columns = from_table(tokenizer(), table, Columns(text=("a", "b")))
    assert by_columns.texts == (*table["a"], *table["b"])
    assert by_columns.labels.tolist() == [1, 1, 0, 0]
    assert by_columns.pairs is not None
    assert by_columns.pairs.tolist() == [[0, 2], [1, 3]]
    assert by_columns.groups is not None
    assert by_columns.groups.tolist() == [0, 1, 0, 1]


def test_whole_numbers_are_one_class_and_targets_are_asked_for():
    table = {"text": ["one", "two", "three"], "label": [1.0, float("nan"), 0.0]}
    assert from_table(tokenizer(), table).classes == ("0", "1")
    table = {"text": ["one", "two", "three"], "label": ["1", "0.5", "2"]}
    data = from_table(tokenizer(), table, Columns(regression=True))
    assert (data.classes, data.labels.tolist()) == ((), [1.0, 0.5, 2.0])


@pytest.mark.parametrize("chat", [ChatFormat(), CHATML, ChatFormat("[{role}]", "[/{role}]", {"assistant": "model"})])
def test_turns_of_a_conversation_are_spans(chat):
    data = from_chats(tokenizer(), [CHAT, CHAT[:2]], ["a", "b"], chat=chat)
    text = lambda span, row: tokenizer().decode(data.tokens[row, data.spans[span][row]])
    for row, turns in enumerate((CHAT, CHAT[:2])):
        said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        for turn, content in enumerate(turns):
            assert content["content"] in text(f"turn {turn}", row)
        assert all(content in text("assistant", row) for content in said)
        assert said[-1] in text("last assistant", row)
        assert data.texts[row].startswith(chat.before.replace("{role}", "user") + "Hi")
    assert not data.spans["turn 3"][1].any()
    assert not (data.spans["assistant"] & data.spans["user"]).any()


def test_a_column_may_hold_conversations():
    table = {"text": [CHAT, CHAT[:2]], "label": ["safe", "harmful"]}
    data = from_table(tokenizer(), table, Columns(positive="harmful"))
    assert data.labels.tolist() == [0, 1]
    assert data.spans["assistant"].any(axis=1).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: from_table(t, TABLE, Columns(label="truth")), "no column of labels called 'truth'; it has 'statem"),
        (lambda t: from_table(t, {"x": ["a"], "label": [1]}), "no column of texts called 'text' or 'prompt'"),
        (lambda t: from_table(t, TABLE, Columns(group="town")), "no column called 'town'"),
        (lambda t: from_table(t, TABLE, Columns(spans=("town",))), "no column called 'town'"),
        (lambda t: from_table(t, {"text": ["a", "b"], "label": [1, 1]}), "all rows with a text have the label '1'"),
        (lambda t: from_table(t, {"text": ["", None], "label": [1, 0]}), "no row has both"),
        (lambda t: from_table(t, {"text": ["a", "b"], "label": [1]}), "different lengths"),
        (lambda t: from_table(t, TABLE, Columns(spans=("n",))), "'n' of example 0: 0 is not a part"),
        (lambda t: from_table(t, TABLE, Columns(pair="label")), "3 rows are in the pair 1"),
        (lambda t: from_table(t, {"text": ["a", "b", "c"], "label": [1, 1, 0], "p": [1, 1, 2]}, Columns(pair="p")),
         "both rows of the pair 1 have the label '1'"),
        (lambda t: from_table(t, TABLE, Columns(positive="2")), "must be one of two classes"),
        (lambda t: from_table(t, {"text": ["a"], "label": ["x"]}, Columns(regression=True)), "row 1, 'x', is not a nu"),
        (lambda t: Columns(text=("a", "b"), pair="c"), "makes a pair of each row"),
        (lambda t: from_table(t, {"text": ["a", CHAT], "label": [0, 1]}), "others a conversation"),
        (lambda t: from_chats(t, [CHAT, []], [0, 1]), "example 1: a conversation must be a list"),
        (lambda t: from_chats(t, [CHAT, [{"role": "user"}]], [0, 1]), "example 1: turn 0 must be"),
        (lambda t: from_chats(t, [CHAT, [{"role": "user", "content": "<|endoftext|>"}]], [0, 1]), "special token"),
        (lambda t: from_chats(t, [CHAT, CHAT[:2]], [0, 1], context=12), "context=12 cuts example 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make(tokenizer())


def test_a_csv_without_optional_columns_is_enough(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nfirst,yes\nsecond,no\n")
    data = from_table(tokenizer(), tmp_path / "t.csv")
    assert (data.name, data.classes, data.labels.tolist()) == ("t", ("no", "yes"), [1, 0])
    assert data.groups is None
    np.testing.assert_array_equal(data.readable.sum(axis=1) > 0, True)
