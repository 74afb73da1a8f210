"""The tokenizer: lossless, deterministic, cut where it says, one rule for BOS."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_interp.core.errors import UserError
from jax_interp.data.stdlib import stdlib_corpus
from jax_interp.data.tokenizer import BOS, load_tokenizer, train_bpe


@pytest.fixture(scope="module")
def texts():
    return [document.text for document in stdlib_corpus().train[::20]]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_bpe(texts, 1024)


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=("Cs",))))
def test_any_text_decodes_to_itself(tokenizer, text):
    if BOS not in text:
        assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text


def test_code_decodes_to_itself(tokenizer, texts):
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts, bos=False)] == texts


def test_training_is_deterministic_and_saving_keeps_everything(tokenizer, texts, tmp_path):
    tokenizer.save(tmp_path / "one" / "tokenizer.json")
    train_bpe(texts, 1024).save(tmp_path / "two.json")
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    loaded = load_tokenizer(tmp_path / "one")
    assert (loaded.bos_id, loaded.vocab_size, loaded.special_ids) == (0, 1024, {0})
    assert loaded.encode(texts[0], bos=True) == tokenizer.encode(texts[0], bos=True)


def test_pieces(tokenizer):
    """Indentation goes with its newline, brackets stand alone, identifiers are cut at _, case and digits."""

    def cut(text):
        return [piece for piece, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)]

    space, newline = "Ġ", "Ċ"
    assert cut("    return x\n\n        y") == [space * 3, f"{space}return", f"{space}x", newline * 2 + space * 8, "y"]
    assert cut("f(a[0])") == ["f", "(", "a", "[", "0", "]", ")"]
    assert cut("get_default_encoding") == ["get", "_default", "_encoding"]
    assert cut("HTTPServerFoo2") == ["HTTP", "Server", "Foo", "2"]
    assert cut("self.__init__(x)") == ["self", ".", "__init__", "(", "x", ")"]
    assert cut("x == 12345") == ["x", f"{space}==", f"{space}123", "45"]
    assert len(tokenizer.encode("\n        ", bos=False)) == 1
    assert tokenizer.id_of(" self") != tokenizer.id_of("self")


def test_bos_is_explicit(tokenizer, texts):
    plain = tokenizer.encode(texts[0], bos=False)
    assert tokenizer.encode(texts[0], bos=True) == [tokenizer.bos_id, *plain]
    assert tokenizer.encode_batch(texts[:2], bos=True)[0][0] == tokenizer.bos_id
    assert 0 not in plain


def test_strings_are_for_reading(tokenizer):
    ids = tokenizer.encode(" self\n    x", bos=True)
    strings = tokenizer.strings(ids)
    assert strings[:2] == [BOS, "·self"]
    assert strings[2] == "⏎····"
    assert len(tokenizer.strings(range(tokenizer.vocab_size))) == tokenizer.vocab_size


def test_errors(tokenizer, tmp_path):
    with pytest.raises(UserError, match="no tokenizer at"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="too small"):
        train_bpe(["x"], 100)
    with pytest.raises(UserError, match="not one token"):
        tokenizer.id_of("certainly not one token")
    tokenizer.save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match="not in the vocabulary"):
        load_tokenizer(tmp_path, bos_token="<s>")
