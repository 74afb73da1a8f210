"""A user's text: what is read, which rows it gives, and what is kept in the cache."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_interp.core.errors import UserError
from jax_interp.data import token_cache
from jax_interp.data.document_rows import DocumentRows
from jax_interp.data.documents import read_documents
from jax_interp.data.text import text_for
from jax_interp.data.tokenizer import train_bpe

DOCUMENTS = ["a red cat sat", "a blue dog ran to the red cat and the blue dog sat", "the cat"] * 10


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(DOCUMENTS, 280)


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"n": 1, "body": row}) + "\n\n" for row in rows), encoding="utf-8")
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"n": [1] * len(rows), "body": rows}), path)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_of_tables_are_documents(tmp_path, suffix):
    file = tmp_path / f"a{suffix}"
    write_rows(file, ["one\ntwo", "", "drei ü"])
    assert read_documents(file, "body") == ["one\ntwo", "drei ü"]
    (tmp_path / "b.txt").write_text("four")
    assert read_documents(tmp_path, "body") == ["one\ntwo", "drei ü", "four"]
    with pytest.raises(UserError, match=r"'text'.*body"):
        read_documents(file)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": 3}\n', "line 1"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2"),
        ("a.jsonl", b"[1]\n", "list"),
        ("a.jsonl", b"[" * 100_000, "line 1"),
        ("a.jsonl", b"\xff", "UTF-8"),
        ("a.parquet", b"PAR1 and nothing else", "Parquet"),
        ("a.txt", b"\xff", "UTF-8"),
        ("a.txt", b"", "no text"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_documents(tmp_path / name)


def test_an_empty_path_is_not_the_working_directory():
    with pytest.raises(UserError, match="empty"):
        read_documents("")


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any),
    length=st.integers(2, 7),
    bos=st.booleans(),
    seed=st.integers(0, 99),
)
def test_rows_of_documents_hold_every_token_once_in_an_epoch(lengths, length, bos, seed):
    documents = [np.arange(10 * i + 10, 10 * i + 10 + n) % 250 + 3 for i, n in enumerate(lengths)]
    parts = [np.append(1, document) if bos else document for document in documents]
    starts = np.cumsum([len(part) for part in parts]) - [len(part) for part in parts]
    rows = DocumentRows(np.concatenate(parts), starts, length, 1 if bos else None, pad_id=0)
    tokens, real = rows.at(np.arange(len(rows)))
    assert ((tokens == 0) == ~real).all()  # padding, and nothing else, is masked
    assert not bos or (tokens[:, 0] == 1).all()
    # the rows in order, without BOS and padding, are the documents, and no row has tokens of two of them
    np.testing.assert_array_equal(tokens[:, int(bos) :][real[:, int(bos) :]], np.concatenate(documents))
    assert len(rows) == sum(-(-n // (length - bos)) for n in lengths)
    epoch = np.concatenate([rows.batch_at(step, 1, seed)[0] for step in range(len(rows))])
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, tokens))


def test_a_text_gives_rows_of_documents(tmp_path, tokenizer):
    file = tmp_path / "a.jsonl"
    write_rows(file, DOCUMENTS)
    text = text_for(str(file), tokenizer, rows="documents", column="body")
    for tokens, keep in [text.training_batches(4, 8, seed=0)(3), *text.validation_batches(2, 8, 4)]:
        assert (tokens[:, 0] == tokenizer.bos_id).all()
        assert not keep[:, 0].any()
        for row, kept in zip(tokens, keep):  # tokens of one document, from its beginning or further on
            assert any(tokenizer.decode(row[kept].tolist()) in document for document in DOCUMENTS)
    with pytest.raises(UserError, match="'documents'"):
        text_for(str(file), tokenizer, rows="lines", column="body")  # pyright: ignore[reportArgumentType]


def test_tokens_are_kept_and_a_damaged_file_is_made_again(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv(token_cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "SMALLEST", 10)
    (tmp_path / "text").mkdir()
    for i, document in enumerate(DOCUMENTS):
        (tmp_path / "text" / f"{i:02}.txt").write_text(document)
    first = text_for(str(tmp_path / "text"), tokenizer)
    files = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(files) == 2
    written = [file.stat().st_mtime_ns for file in files]
    assert text_for(str(tmp_path / "text"), tokenizer).fingerprint() == first.fingerprint()
    assert [file.stat().st_mtime_ns for file in files] == written
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    assert text_for(str(tmp_path / "text"), tokenizer).fingerprint() == first.fingerprint()
    # another tokenizer has files of its own
    other = train_bpe(["xyz"], 260)
    assert text_for(str(tmp_path / "text"), other).fingerprint() != first.fingerprint()
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 4
