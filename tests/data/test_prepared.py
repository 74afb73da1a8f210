"""From text to tokens on disk: made once, read after, refused when the text is another."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.data import prepared, stdlib
from jax_interp.data.prepared import TextConfig, prepare_text

CONFIG = TextConfig(vocab_size=300, max_documents=5)


@pytest.fixture(autouse=True)
def _small_validation(monkeypatch):
    corpus = stdlib.stdlib_corpus()
    small = dataclasses.replace(corpus, validation=corpus.validation[:2])
    monkeypatch.setattr(prepared, "stdlib_corpus", lambda: small)


def test_made_once_and_lossless(tmp_path):
    text = prepare_text(CONFIG, tmp_path)
    corpus = prepared.stdlib_corpus()
    kept = corpus.train[:: -(-len(corpus.train) // 5)]
    assert len(kept) <= 5
    assert [text.tokenizer.decode(d[1:]) for d in text.train.documents()] == [d.text for d in kept]
    assert [text.tokenizer.decode(d[1:]) for d in text.validation.documents()] == [d.text for d in corpus.validation]
    assert text.about["validation_bytes"] == sum(len(d.text.encode()) for d in corpus.validation)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = prepare_text(CONFIG, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    np.testing.assert_array_equal(again.train.tokens, text.train.tokens)


def test_an_interrupted_preparation_is_made_again(tmp_path):
    tokens = np.asarray(prepare_text(CONFIG, tmp_path / "whole").train.tokens)
    prepare_text(CONFIG, tmp_path / "cut")
    (tmp_path / "cut" / "manifest.json").unlink()
    (tmp_path / "cut" / "train.npy").write_bytes(b"half")
    np.testing.assert_array_equal(prepare_text(CONFIG, tmp_path / "cut").train.tokens, tokens)
    (tmp_path / "cut" / "manifest.json").write_bytes(b"")
    with pytest.raises(UserError, match=r"manifest\.json is not JSON"):
        prepare_text(CONFIG, tmp_path / "cut")


def test_another_text_is_refused(tmp_path, monkeypatch):
    prepare_text(CONFIG, tmp_path)
    with pytest.raises(UserError, match="max_documents=5"):
        prepare_text(dataclasses.replace(CONFIG, max_documents=6), tmp_path)
    with pytest.raises(UserError, match="a tokenizer of 300 tokens, not 301"):
        prepare_text(dataclasses.replace(CONFIG, vocab_size=301), tmp_path)
    other = dataclasses.replace(prepared.stdlib_corpus(), fingerprint="0" * 64, python="3.99")
    monkeypatch.setattr(prepared, "stdlib_corpus", lambda: other)
    with pytest.raises(UserError, match=r"this is Python 3\.99"):
        prepare_text(CONFIG, tmp_path)


def test_another_tokenizer_beside_the_tokens_is_refused(tmp_path):
    prepare_text(CONFIG, tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"dropout": null', '"dropout": 0.1'))
    with pytest.raises(UserError, match="does not belong to the tokens"):
        prepare_text(CONFIG, tmp_path)


def test_impossible_sizes(tmp_path):
    with pytest.raises(UserError, match="max_documents=0"):
        prepare_text(TextConfig(max_documents=0), tmp_path)
    with pytest.raises(UserError, match="fewer than vocab_size"):
        prepare_text(TextConfig(vocab_size=60_000, max_documents=2), tmp_path)
