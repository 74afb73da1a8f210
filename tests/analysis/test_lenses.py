"""Logit and tuned lens: the last row is the model, a lens at its start is the logit lens, and training improves it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp import load
from jax_interp.analysis import (
    TunedLens,
    TunedLensConfig,
    init_tuned_lens,
    kl_by_layer,
    load_tuned_lens,
    logit_lens,
    needed,
    readout,
    save_tuned_lens,
    token_ranks,
    top_tokens,
    train_tuned_lens,
    tuned_lens,
)
from jax_interp.analysis.lens_training import TunedLensState, _optimizer, train_step
from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.surgery import Replace, at, edit, read
from jax_interp.training import Log

CAPPED = replace(
    LLAMA_LIKE, norm_offset=True, norm_places="around", logit_softcap=30.0, logit_scale=0.5, unembed_bias=True
)


@pytest.fixture(scope="module", params=[GPT2_LIKE, CAPPED], ids=["gpt2", "capped"])
def case(request, call, tokens):
    model = peaky(request.param)
    return model, *call(read(model, needed(model, logit_lens)), tokens)


def test_the_last_row_is_the_model(case):
    model, logits, acts = case
    lens = jax.jit(partial(logit_lens, pos=slice(3, None)))(model, acts)
    assert lens.labels == ("0_pre", "1_pre", "2_pre", "final_post")
    np.testing.assert_allclose(lens["final_post"], logits[:, 3:], atol=1e-5)


def test_a_row_is_what_the_model_says_of_that_stream(case, call, tokens):
    """The lens at layer 1 is the model whose last layer's output is replaced by the stream before layer 1."""
    model, _, acts = case
    skipped = call(edit(model, at("blocks.-1.resid_post", Replace(acts["blocks.1.resid_pre"]))), tokens)
    lens = logit_lens(model, acts)
    np.testing.assert_allclose(lens["1_pre"], skipped, atol=1e-5)
    np.testing.assert_allclose(readout(model, acts["blocks.1.resid_pre"][0, 2]), skipped[0, 2], atol=1e-5)


def test_keep_says_what_is_kept_of_each_layer(case, tokens):
    model, logits, acts = case
    ranks = logit_lens(model, acts, reduce=lambda logits: token_ranks(logits, tokens))
    assert ranks.values.shape == (4, *tokens.shape)
    order = np.argsort(-np.asarray(logits), -1)
    wanted = [[list(order[b, p]).index(int(tokens[b, p])) for p in range(9)] for b in range(2)]
    np.testing.assert_array_equal(ranks["final_post"], wanted)
    best = top_tokens(logits[:, -1], k=3)
    assert [token for token, _ in best[1]] == list(order[1, -1, :3])


def test_a_tuned_lens_at_its_start_is_the_logit_lens(case):
    model, _, acts = case
    start = tuned_lens(model, init_tuned_lens(model), acts)
    np.testing.assert_array_equal(start.values, logit_lens(model, acts).values)


def test_translation_in_float64():
    rng = np.random.default_rng(0)
    weight, bias, x = rng.standard_normal((2, 4, 4)), rng.standard_normal((2, 4)), rng.standard_normal((2, 3, 5, 4))
    lens = TunedLens(jnp.asarray(weight, jnp.float32), jnp.asarray(bias, jnp.float32))
    wanted = x + np.einsum("lbpd,lde->lbpe", x, weight) + bias[:, None, None]
    np.testing.assert_allclose(lens(jnp.asarray(x, jnp.float32)), wanted, rtol=1e-5, atol=1e-5)


def test_kl_by_layer_is_the_kl(case, tokens):
    model, logits, acts = case
    keep = np.ones(tokens.shape, bool)
    keep[0, :4] = False
    lens = np.asarray(logit_lens(model, acts).values[:-1], np.float64)
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (np.asarray(logits, np.float64), lens))
    wanted = (np.exp(log_p) * (log_p - log_q)).sum(-1)[:, keep].mean(-1)
    got = jax.jit(kl_by_layer)(model, init_tuned_lens(model), tokens, jnp.asarray(keep))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)


def test_layers_learn_by_themselves(tokens):
    """The gradient of one layer's loss touches that layer's map alone, and the model's weights get none."""
    model = peaky(GPT2_LIKE)
    grad = jax.jit(jax.grad(lambda lens: kl_by_layer(model, lens, tokens)[1]))(init_tuned_lens(model))
    assert jnp.abs(grad.weight[1]).max() > 0
    assert not grad.weight[0].any()
    assert not grad.bias[2].any()


@pytest.fixture(scope="module")
def small():
    """The shipped model, and windows of code."""
    model, tokenizer = load("stdlib-small")
    code = Path(jax.__file__).read_text()
    ids = np.asarray(tokenizer.encode(code, bos=False))

    def windows(seed: int, count: int, part: slice):
        some = ids[part]
        starts = np.random.default_rng(seed).integers(0, len(some) - 32, count)
        return jnp.asarray(np.stack([np.r_[0, some[s : s + 31]] for s in starts]), jnp.int32)

    cut = len(ids) * 3 // 4
    return model, partial(windows, count=8, part=slice(0, cut)), windows(0, 16, slice(cut, None))


@pytest.mark.slow
def test_training_brings_every_layer_nearer_to_the_model(small, tmp_path):
    model, batch_at, held_out = small
    measure = jax.jit(kl_by_layer)
    before = measure(model, init_tuned_lens(model), held_out)
    config = TunedLensConfig(steps=30, learning_rate=3e-3)
    records: list[dict] = []
    lens = train_tuned_lens(config, model, batch_at, log=Log(on_record=records.append, quiet=True))
    after = measure(model, lens, held_out)
    assert (after < 0.75 * before).all(), (before, after)
    assert records[-1]["step"] == 30

    directory = save_tuned_lens(tmp_path / "lens", lens, model="stdlib-small", config=config)
    loaded = load_tuned_lens(directory, model="stdlib-small")
    np.testing.assert_array_equal(loaded.weight, lens.weight)
    np.testing.assert_array_equal(loaded.bias, lens.bias)


def test_a_step_takes_tokens_that_do_not_count(tokens):
    """Positions that are not kept change nothing: not their tokens either, which only later ones see."""
    model = peaky(LLAMA_LIKE)
    config = TunedLensConfig(steps=5)
    keep = jnp.arange(9)[None].repeat(2, 0) < 6
    adam = optimizer.init(_optimizer(config), init_tuned_lens(model))
    state = TunedLensState(init_tuned_lens(model), adam)
    step = jax.jit(partial(train_step, config))
    one, _ = step(state, (tokens, keep), model)
    other, _ = step(state, (tokens.at[:, 6:].set(1), keep), model)
    np.testing.assert_allclose(one.lens.bias, other.lens.bias, atol=1e-6)


def test_what_is_no_lens_is_refused(tmp_path, tokens):
    lens = TunedLens(jnp.zeros((3, 32, 32)), jnp.zeros((3, 32)))
    with pytest.raises(UserError, match=r"tuned_lens\.json is missing"):
        load_tuned_lens(tmp_path)
    directory = save_tuned_lens(tmp_path, lens, model="gpt2")
    with pytest.raises(UserError, match="is of 'gpt2'"):
        load_tuned_lens(directory, model="gpt3")
    tensors = directory / "tuned_lens.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_tuned_lens(directory)
    model = peaky(replace(GPT2_LIKE, n_layers=2))
    acts = read(model, needed(model, tuned_lens), output=False)(tokens)
    with pytest.raises(UserError, match="trained for another"):
        tuned_lens(model, lens, acts)
    with pytest.raises(UserError, match="steps=0"):
        TunedLensConfig(steps=0)
