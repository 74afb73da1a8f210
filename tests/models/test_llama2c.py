"""A trained model in llama2.c's layout says what llama2.c says, byte by byte."""

from __future__ import annotations

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import peaky

from jax_interp.core.errors import UserError
from jax_interp.models import Config, generate
from jax_interp.models.llama2c import load_llama2c


@pytest.fixture(scope="module")
def stories(test_data):
    folder = test_data / "stories260K"
    return load_llama2c(folder / "stories260K.bin", folder / "tok512.bin")


def test_greedy_text_is_exactly_the_reference(stories, test_data):
    model, tokenizer = stories
    out = generate(model, jnp.asarray([[1]]), 200, stop=[1])
    expected = (test_data / "stories260K" / "expected_greedy.txt").read_bytes()
    assert len(expected) == 464
    assert tokenizer.decode_bytes(np.asarray(out)[0]) == expected


def test_it_models_the_text_that_it_was_trained_on(stories, test_data):
    """Mean NLL about 1.39 on windows of stories, tokenized greedily by longest piece (its own merges give less)."""
    model, tokenizer = stories
    texts = json.loads((test_data / "text" / "tinystories_1000.json").read_text())
    texts = [text if isinstance(text, str) else text["text"] for text in texts][:16]
    ids = {piece: i for i, piece in enumerate(tokenizer.pieces) if i > 2}

    def encode(text: str) -> list[int]:
        data, found, at = b" " + text.strip().encode(), [1], 0
        while at < len(data) and len(found) < 128:
            piece = next(data[at : at + n] for n in range(12, 0, -1) if data[at : at + n] in ids)
            found.append(ids[piece])
            at += len(piece)
        return found

    rows = [row for text in texts if len(row := encode(text)) == 128]
    tokens = jnp.asarray(rows, jnp.int32)
    logp = jax.nn.log_softmax(jax.jit(lambda m, t: m(t))(model, tokens)[:, :-1])
    nll = -jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1).mean()
    assert 1.0 < float(nll) < 2.2  # a model of another function (rotary pairs mixed up, say) has over 4


def _written(config: Config, model) -> bytes:
    """A file as llama2.c writes it: adjacent rotary pairs, weights [out, in]."""
    block, half = model.blocks[0].block, config.d_head // 2
    adjacent = lambda w: w.reshape(*w.shape[:2], -1, 2, half).swapaxes(-1, -2).reshape(w.shape)
    turned = lambda w: np.asarray(w).swapaxes(-1, -2)
    arrays = [
        *(
            model.embed.weight,
            block.ln1.weight,
            turned(adjacent(block.attn.q.weight)),
            turned(adjacent(block.attn.k.weight)),
        ),
        *(turned(block.attn.v.weight), turned(block.attn.o.weight), block.ln2.weight, turned(block.mlp.gate.weight)),
        *(turned(block.mlp.down.weight), turned(block.mlp.up.weight), model.ln_final.weight),
        np.zeros((2, config.n_ctx, half)),
    ]
    if not config.tied_embedding:
        arrays.append(turned(model.unembed.weight))
    vocab = config.vocab_size if config.tied_embedding else -config.vocab_size
    sizes = (config.d_model, config.d_mlp, config.n_layers, config.n_heads, config.n_kv_heads, vocab, config.n_ctx)
    return struct.pack("<7i", *sizes) + b"".join(np.asarray(a, "<f4").tobytes() for a in arrays)


@pytest.mark.parametrize("tied", [True, False])
def test_a_written_file_is_read_as_the_same_function(tmp_path, tied):
    config = Config(
        n_layers=2, d_model=16, n_heads=4, n_kv_heads=2, d_mlp=24, vocab_size=11, n_ctx=8, tied_embedding=tied
    )
    model = jax.tree.map(np.asarray, peaky(config))
    (tmp_path / "m.bin").write_bytes(_written(config, model))
    read, tokenizer = load_llama2c(tmp_path / "m.bin")
    assert tokenizer is None
    assert read.config == config
    tokens = jnp.arange(8, dtype=jnp.int32)[None]
    np.testing.assert_array_equal(read(tokens), jax.tree.map(jnp.asarray, model)(tokens))


def test_files_of_another_layout_are_refused(tmp_path):
    config = Config(n_layers=1, d_model=8, n_heads=2, d_mlp=8, vocab_size=5, n_ctx=4)
    data = _written(config, jax.tree.map(np.asarray, peaky(config)))
    cases = {"short": (b"1234", "header"), "other": (b"\xff" * 64, "sizes"), "cut": (data[:-300], "ends within"),
             "long": (data + b"1234", "bytes")}  # fmt: skip
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_llama2c(tmp_path / name)
    (tmp_path / "whole").write_bytes(data)
    (tmp_path / "pieces").write_bytes(struct.pack("<i", 3) + struct.pack("<fi1s", 0.0, 1, b"a"))
    with pytest.raises(UserError, match="1 pieces, the model has 5"):
        load_llama2c(tmp_path / "whole", tmp_path / "pieces")
    with pytest.raises(UserError, match="cannot read"):
        load_llama2c(tmp_path / "absent")
