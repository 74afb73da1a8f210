"""Texts of rows: stopped where they say, streamed as they come, whole characters only."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.data.tokenizer import train_bpe
from jax_interp.models import Sample, complete, generate, pad_left, stream_text
from jax_interp.models.generation.completion import continuation, stable_prefix
from jax_interp.surgery import Add, at, edit

PROMPTS = ["def push(self", "x", "return [item"]
DRAW = {"choose": Sample(1.5), "key": jax.random.key(2)}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["def push(self, item):\n    return [item]\n"] * 3, 280)


@pytest.fixture(scope="module")
def model():
    return peaky(dataclasses.replace(LLAMA_LIKE, vocab_size=280, n_ctx=64))


def test_texts_are_what_generate_writes(model, tokenizer):
    done = complete(model, tokenizer, PROMPTS, 8, bos=True, **DRAW)
    ids = tokenizer.encode_batch(PROMPTS, bos=True)
    tokens, mask = pad_left(ids)
    expected = np.asarray(generate(model, tokens, 8, mask=mask, **DRAW)).tolist()
    assert [one.tokens for one in done] == expected
    for one, prompt in zip(done, ids, strict=True):
        assert one.text == tokenizer.decode([*prompt, *one.tokens])[len(tokenizer.decode(prompt)) :]
        assert one.stopped_by is None


def test_stop_strings_and_tokens_end_a_row_and_are_left_out(model, tokenizer):
    free = complete(model, tokenizer, PROMPTS, 10, bos=True, **DRAW)
    string, token = free[0].text[3:5], free[1].tokens[4]
    for stop in ([string], [token], [string, token], [token, string, "not there"]):
        done = complete(model, tokenizer, PROMPTS, 10, bos=True, stop=stop, **DRAW)
        for row, whole in zip(done, free, strict=True):
            assert whole.text.startswith(row.text.rstrip("\ufffd"))
            assert not any(s in row.text for s in stop if isinstance(s, str))
            assert token not in row.tokens or token not in stop
            assert row.stopped_by is not None or row == whole
    assert complete(model, tokenizer, PROMPTS, 10, bos=True, stop=[string], **DRAW)[0].stopped_by == string
    assert complete(model, tokenizer, PROMPTS, 10, bos=True, stop=[token], **DRAW)[1].stopped_by == token


def test_streamed_pieces_join_to_the_text(model, tokenizer):
    whole = complete(model, tokenizer, PROMPTS[:1], 12, bos=True, **DRAW)[0].text
    for stop in ([], [whole[4:7]], ["not there"], [whole[2:]]):
        pieces = list(stream_text(model, tokenizer, PROMPTS[0], 12, bos=True, stop=stop, **DRAW))
        assert "".join(pieces) == complete(model, tokenizer, PROMPTS[:1], 12, bos=True, stop=stop, **DRAW)[0].text
        assert len(pieces) > 1 or stop


def test_bytes_of_a_character_are_held_back(model, tokenizer):
    """An edit makes the model write the bytes of two characters, one at a time."""
    ids = tokenizer.encode("x", bos=True)
    new = tokenizer.encode("é😀!", bos=False)
    assert len(new) == 7
    push = jnp.zeros((len(ids) + 6, 280)).at[jnp.arange(7) + len(ids) - 1, jnp.asarray(new)].set(1e3)
    forced = edit(model, *[at("logits", Add(push[i]), pos=i) for i in range(len(ids) + 6)])
    assert list(stream_text(forced, tokenizer, "x", 7, bos=True)) == ["é", "😀", "!"]
    forced = edit(model, *[at("logits", Add(push[i]), pos=i) for i in range(len(ids) + 2)])
    assert list(stream_text(forced, tokenizer, "x", 3, bos=True)) == ["é", "\ufffd"]  # cut in the middle: it says so


@given(st.text("ab\ufffd"), st.lists(st.text("ab", min_size=1), max_size=3))
def test_what_is_stable_stays(text, stops):
    sure = stable_prefix(text, stops)
    assert text.startswith(sure)
    rest = text[len(sure) :].rstrip("\ufffd")
    assert rest == "" or any(stop.startswith(rest) for stop in stops)


def test_a_word_keeps_its_space_where_a_tokenizer_drops_the_first():
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    from jax_interp.data.tokenizer import Tokenizer

    backend = Backend(models.WordLevel({"▁a": 0, "▁b": 1}, unk_token="▁a"))
    backend.decoder = decoders.Metaspace()
    spaced = Tokenizer(backend, None)
    assert spaced.decode([1]) == "b"
    assert continuation(spaced, [0], [1]) == " b"


def test_what_is_asked_wrongly(model, tokenizer):
    with pytest.raises(UserError, match="list of prompts"):
        complete(model, tokenizer, "x", 3, bos=True)
    with pytest.raises(UserError, match="stop takes a list"):
        complete(model, tokenizer, ["x"], 3, bos=True, stop="x")
    with pytest.raises(UserError, match="must not be empty"):
        complete(model, tokenizer, ["x"], 3, bos=True, stop=[""])
    with pytest.raises(UserError, match="NaN"):
        continuation(tokenizer, [1], [-1])
