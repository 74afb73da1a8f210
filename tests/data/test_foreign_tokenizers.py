"""Tokenizers of other tools: settings they were saved with, ids that the model lacks, decoders that trim spaces."""

from __future__ import annotations

import itertools
import json
import random

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from jax_interp.analysis.readout import top_tokens
from jax_interp.core.errors import UserError
from jax_interp.data.text import text_for
from jax_interp.data.tokenizer import BOS, Tokenizer, load_tokenizer, train_bpe
from jax_interp.models import Config, init, load, save

TEXTS = ["def mean(self, values):\n    return sum(values) / len(values)\n", "John gave Mary the book. " * 3] * 5


def byte_level() -> Backend:
    return train_bpe(TEXTS, 330).backend


def sentencepiece() -> Backend:
    """As Llama 2's: a mark for each space and one before the text, bytes for unknown characters."""
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    values = json.loads(backend.to_str())
    values["added_tokens"] = values["added_tokens"][:3]  # bytes are ordinary tokens
    return Backend.from_str(json.dumps(values))


def metaspace() -> Backend:
    """As T5's and Mistral's newer files: the Metaspace decoder removes the first space of a text."""
    backend = Backend(models.BPE(byte_fallback=False, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>"], show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return backend


BACKENDS = {"byte level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace}


@pytest.fixture(scope="module", params=BACKENDS)
def tokenizer(request, tmp_path_factory):
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    BACKENDS[request.param]().save(str(file))
    return load_tokenizer(file)


words = st.lists(st.sampled_from(["def", "mean", "the", "  ", "Mary", "book.", "é", "\n", "values", "日"]), min_size=1)


@given(words.map(" ".join))
def test_the_texts_of_tokens_join_to_the_text(tokenizer, text):
    """Apart from the space that some tokenizers add in front, and from characters of several tokens."""
    ids = tokenizer.encode(text, bos=False)
    texts = tokenizer.texts(ids)
    assert len(texts) == len(ids)
    joined, whole = "".join(texts), tokenizer.decode(ids)
    if "\ufffd" not in joined:
        assert joined in (whole, " " + whole)


@given(words.map(" ".join))
def test_what_is_displayed_are_these_texts_with_visible_spaces(tokenizer, text):
    plain = tokenizer.texts(ids := tokenizer.encode(text, bos=False))
    for i, one, shown in zip(ids, plain, tokenizer.strings(ids), strict=True):
        if "\ufffd" not in one and i not in tokenizer.special_ids:
            assert shown.replace("·", " ").replace("⏎", "\n") == one
        else:
            assert shown == tokenizer.backend.id_to_token(i)


def test_a_leading_space_and_a_byte_are_shown():
    tokenizer = Tokenizer(sentencepiece(), 1, frozenset({0, 1, 2}))
    ids = tokenizer.encode("the Mary\n日", bos=True)
    assert tokenizer.strings(ids)[-4:] == ["⏎", "<0xE6>", "<0x97>", "<0xA5>"]
    strings = tokenizer.strings(ids[1:-4])
    assert "".join(strings) == "·the·Mary"
    scores = np.zeros(tokenizer.vocab_size)
    scores[ids[1]] = 1.0
    assert strings[0].startswith("·")
    assert top_tokens(scores, tokenizer, 1) == [(strings[0].replace("·", " "), 1.0)]


SETTINGS = [
    {"truncation": {"direction": direction, "max_length": length, "strategy": strategy, "stride": stride}}
    for direction, length, strategy, stride in itertools.product(
        ("Left", "Right"), (0, 3, 8), ("LongestFirst", "OnlyFirst", "OnlySecond"), (0, 2, 50)
    )
]
SETTINGS += [
    {"padding": {"strategy": strategy, "direction": direction, "pad_to_multiple_of": multiple, "pad_id": 1,
                 "pad_type_id": 0, "pad_token": "<pad>"}}
    for strategy, direction, multiple in itertools.product(
        ("BatchLongest", {"Fixed": 24}), ("Left", "Right"), (None, 8)
    )
]  # fmt: skip


@pytest.mark.parametrize("name", BACKENDS)
def test_truncation_and_padding_of_a_file_are_switched_off(name, tmp_path):
    values = json.loads(BACKENDS[name]().to_str())
    (tmp_path / "plain.json").write_text(json.dumps(values))
    plain, texts = load_tokenizer(tmp_path / "plain.json"), [TEXTS[0] * 3, "the book"]
    for first, second in zip(SETTINGS, random.sample(SETTINGS, len(SETTINGS)), strict=True):
        (tmp_path / "set.json").write_text(json.dumps(values | second | first))
        found = load_tokenizer(tmp_path / "set.json")
        assert found.encode_batch(texts, bos=False) == plain.encode_batch(texts, bos=False), (first, second)
        assert [found.encode(text, bos=False) for text in texts] == plain.encode_batch(texts, bos=False)
        assert found.exact.encode(texts[0]).ids == plain.exact.encode(texts[0]).ids


def test_a_training_text_keeps_its_tokens(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(12):
        (tmp_path / "text" / f"{i}.txt").write_text(TEXTS[0] * (20 + i))
    values = json.loads(byte_level().to_str())
    sizes = set()
    for settings in ({}, SETTINGS[2], SETTINGS[-1]):
        (tmp_path / "tokenizer.json").write_text(json.dumps(values | settings))
        sizes.add(text_for(str(tmp_path / "text"), load_tokenizer(tmp_path / "tokenizer.json")).train.size)
    assert len(sizes) == 1


def test_ids_that_the_model_lacks_are_refused_where_a_text_needs_them(tmp_path):
    tokenizer = train_bpe(TEXTS, 330)
    sizes = {"n_layers": 1, "d_model": 8, "n_heads": 2, "d_mlp": 8, "n_ctx": 8}
    directory = save(init(Config(**sizes, vocab_size=300), jax.random.key(0)), tmp_path / "m", tokenizer=tokenizer)
    _, found = load(directory)
    last = tokenizer.vocab_size - 1
    assert (found.vocab_size, found.model_ids) == (last + 1, 300)
    low = tokenizer.decode([40, 41])
    assert found.encode(low, bos=True) == tokenizer.encode(low, bos=True)
    high = tokenizer.decode([last])
    for encode in (lambda: found.encode(high, bos=False), lambda: found.encode_batch([low, high], bos=True),
                   lambda: found.id_of(high), lambda: text_for(str(tmp_path / "t.txt"), found)):  # fmt: skip
        (tmp_path / "t.txt").write_text(high * 5000)
        with pytest.raises(UserError, match=rf"has the id {last}, but the model has only 300 ids"):
            encode()


def test_ids_with_gaps_and_ids_without_a_token():
    values = json.loads(byte_level().to_str())
    values["model"]["vocab"] = {token: i + 1000 * (i > 300) for token, i in values["model"]["vocab"].items()}
    tokenizer = Tokenizer(Backend.from_str(json.dumps(values)), 0)
    assert tokenizer.vocab_size == 1 + max(values["model"]["vocab"].values()) > 1300
    assert tokenizer.strings([700, 5000, -1]) == ["<700>", "<5000>", "<-1>"]
    some = tokenizer.encode(" the book", bos=False)
    assert tokenizer.decode([*some, 700, *some]) == " the book<700> the book"
    with pytest.raises(UserError, match="logits are NaN"):
        tokenizer.decode([5, -1])


def test_a_post_processor_and_added_tokens_change_no_texts():
    backend = byte_level()
    backend.add_tokens([AddedToken("   ", normalized=False)])  # runs of spaces, as in Pythia's tokenizer
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    tokenizer = Tokenizer(backend, 0, frozenset({0}))
    ids = tokenizer.encode("a   b", bos=True)
    assert tokenizer.texts(ids[1:]) == ["a", "   ", "b"]
    assert tokenizer.strings(ids) == [BOS, "a", "···", "b"]
