"""Processed models predict what raw ones do, are what their configs say, and look as each step is to make them."""

from __future__ import annotations

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import flatten
from jax_interp.models import Rope, init, load, save
from jax_interp.models.processing import (
    center_unembed,
    center_writing_weights,
    factor_attention,
    fold_layernorm,
    fold_value_bias,
    process,
)
from jax_interp.models.sharding import rules
from jax_interp.surgery import Replace, Zero, at, edit, iter_blocks, read, replan
from jax_interp.training.sharding import make_mesh, shardings

ROTARY = {"positions": "rotary", "rope": Rope(base=1000.0)}
SHAPES = {
    "gpt2": GPT2_LIKE,
    "gpt2 untied, head with a bias": dataclasses.replace(GPT2_LIKE, tied_embedding=False, unembed_bias=True),
    "gptj: one norm for both": dataclasses.replace(
        GPT2_LIKE, parallel="one norm", qkv_bias=False, out_bias=False, **ROTARY
    ),
    "neox: two norms": dataclasses.replace(GPT2_LIKE, parallel="two norms", **ROTARY),
    "stablelm: LayerNorm, gated, no biases": dataclasses.replace(
        LLAMA_LIKE, norm="layernorm", tied_embedding=True, rope=Rope(dim=4)
    ),
    "solu": dataclasses.replace(GPT2_LIKE, act="solu", mlp_norm=True, mlp_bias=False),
    "attention only": dataclasses.replace(GPT2_LIKE, d_mlp=0, mlp_bias=False),
    "alibi": dataclasses.replace(GPT2_LIKE, positions="alibi"),
    "llama": LLAMA_LIKE,
    "qwen: biases of values, grouped": dataclasses.replace(LLAMA_LIKE, qkv_bias=True),
    "gemma2": dataclasses.replace(
        LLAMA_LIKE,
        norm_offset=True,
        norm_places="around",
        attn_softcap=20.0,
        logit_softcap=10.0,
        embed_scale=5.7,
        tied_embedding=True,
        window=4,
        sliding=(True, False, True),
    ),
    "olmo2": dataclasses.replace(LLAMA_LIKE, norm_places="after", qk_norm="all heads"),
    "mixtral": dataclasses.replace(LLAMA_LIKE, n_experts=4),
}
LAYOUTS = {"stacked": (), "unrolled": "*", "mixed": "1"}
AFTER_LAYERNORM = ["gpt2", "gptj: one norm for both", "stablelm: LayerNorm, gated, no biases"]
WITHOUT_ROTATION = ["gpt2", "alibi"]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 61, (2, 9)), jnp.int32)
call = jax.jit(lambda model, *args: model(*args))


@functools.cache
def raw_model(name):
    return peaky(SHAPES[name])


@functools.cache
def raw_logits(name):
    return call(raw_model(name), TOKENS)


def same_logits(processed, name):
    np.testing.assert_allclose(call(processed, TOKENS), raw_logits(name), atol=5e-5)


def same_predictions(processed, name):
    ours, theirs = (jax.nn.log_softmax(logits) for logits in (call(processed, TOKENS), raw_logits(name)))
    np.testing.assert_allclose(ours, theirs, atol=5e-5)


def blocks(model):
    return [block for _, block in iter_blocks(model)]


@pytest.mark.parametrize("name", [*AFTER_LAYERNORM, "solu", "gemma2", "mixtral"])  # the others below, with the rest
def test_folded_norms_change_no_logit(name):
    raw = raw_model(name)
    folded = fold_layernorm(raw)
    same_logits(folded, name)
    assert folded.config.tied_embedding is False
    places = raw.config.norm_places
    assert folded.config.norm_affine == (places != "before")
    for block in blocks(folded):
        if places == "before":
            assert block.ln1.weight is None
        elif places == "around":
            np.testing.assert_array_equal(block.ln1.weight[...], 0)  # stored less one
            assert jnp.any(block.ln1_post.weight[...]), "what stands after attention feeds no matrix"
        if raw.config.norm == "layernorm":
            read_by = [block.attn.q, block.attn.k, block.attn.v, *([block.mlp.up] if block.mlp else [])]
            for linear in read_by:
                np.testing.assert_allclose(jnp.mean(linear.weight[...], axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("name", AFTER_LAYERNORM)
def test_a_centred_stream_changes_no_logit(name):
    raw = raw_model(name)
    centred = center_writing_weights(raw)
    same_logits(centred, name)
    _, acts = call(read(centred, "blocks.*.resid_pre", "blocks.*.attn_out", "blocks.-1.resid_post"), TOKENS)
    for value in acts.values():
        np.testing.assert_allclose(jnp.mean(value, axis=-1), 0, atol=1e-5)
    before, after = (call(read(model, "ln_final.normalized"), TOKENS)[1] for model in (raw, centred))
    chex.assert_trees_all_close(before["ln_final.normalized"], after["ln_final.normalized"], atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2 untied, head with a bias", "llama", "gemma2"])
def test_centred_logits_predict_the_same(name):
    raw = raw_model(name)
    if raw.config.logit_softcap:
        with pytest.raises(UserError, match=r"caps its logits \(logit_softcap=10.0\).*Leave this step out"):
            center_unembed(raw)
        return
    centred = center_unembed(raw)
    same_predictions(centred, name)
    np.testing.assert_allclose(jnp.mean(call(centred, TOKENS), axis=-1), 0, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "qwen: biases of values, grouped", "llama"])
def test_folded_value_biases_change_no_logit_and_what_ablation_does(name):
    raw = raw_model(name)
    folded = fold_value_bias(raw)
    same_logits(folded, name)
    if not raw.config.qkv_bias:
        chex.assert_trees_all_equal(folded, raw)
        return
    assert folded.config.out_bias
    assert not any(jnp.any(block.attn.v.bias[...]) for block in blocks(folded))
    ablate = at("blocks.1.attn.v", Zero(), head=0)
    before, after = (call(edit(model, ablate), TOKENS) for model in (raw, folded))
    assert jnp.max(jnp.abs(before - after)) > 0.01, "zero now leaves the bias's part in the layer"
    bias = blocks(raw)[1].attn.v.bias[...].reshape(1, 1, raw.config.n_kv_heads, -1)
    bias = jnp.broadcast_to(bias, (*TOKENS.shape, *bias.shape[2:]))
    kept = call(edit(raw, at("blocks.1.attn.v", Replace(bias), head=0)), TOKENS)
    np.testing.assert_allclose(kept, after, atol=5e-5)


@pytest.mark.parametrize("name", WITHOUT_ROTATION)
def test_factored_heads_change_no_logit(name):
    raw = raw_model(name)
    factored = factor_attention(raw)
    same_logits(factored, name)
    names = ("blocks.*.attn.pattern", "blocks.*.attn.result", "blocks.*.attn.z")
    (_, before), (_, after) = (call(read(model, *names), TOKENS) for model in (fold_value_bias(raw), factored))
    np.testing.assert_allclose(before[names[0]], after[names[0]], atol=1e-5)
    np.testing.assert_allclose(before[names[1]], after[names[1]], atol=5e-5)
    norm = lambda x: jnp.linalg.norm(x, axis=-1)
    np.testing.assert_allclose(norm(after[names[2]]), norm(after[names[1]]), rtol=1e-4)
    for block in blocks(factored):
        heads = lambda linear: np.stack(np.split(np.vstack([linear.weight[...], linear.bias[...]]), 4, axis=-1))
        q, k = heads(block.attn.q), heads(block.attn.k)
        for a in (q, k):
            gram = np.swapaxes(a, 1, 2) @ a
            np.testing.assert_allclose(gram, gram * np.eye(8), atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(q, axis=1), np.linalg.norm(k, axis=1), rtol=1e-4)


LAID = [(name, layout) for name in SHAPES for layout in LAYOUTS if layout == "stacked" or name in ("gpt2", "gemma2")]


@pytest.mark.parametrize(("name", "layout"), LAID)
def test_all_of_it_in_every_layout_is_a_model_of_its_config(name, layout):
    laid = replan(raw_model(name), LAYOUTS[layout])
    before = flatten(laid)
    processed = process(laid)
    same_predictions(processed, name)
    assert all(leaf is before[name] for name, leaf in flatten(laid).items()), "the model that was given is as it was"
    if layout != "mixed":
        made = jax.eval_shape(lambda key: init(processed.config, key, stacked=layout == "stacked"), jax.random.key(0))
        assert jax.tree.structure(processed) == jax.tree.structure(made)
        chex.assert_trees_all_equal_shapes_and_dtypes(processed, made)


def test_it_compiles_and_keeps_the_dtype():
    model = peaky(GPT2_LIKE, dtype=jnp.bfloat16)
    processed = jax.jit(process)(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(processed)} == {jnp.dtype(jnp.bfloat16)}
    ours, theirs = (jax.nn.log_softmax(call(m, TOKENS).astype(jnp.float32)) for m in (processed, model))
    assert jnp.mean(jnp.abs(ours - theirs)) < 0.02 * jnp.mean(jnp.abs(theirs))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_processing_a_sharded_model(name):
    model = peaky(SHAPES[name])
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        spread = jax.device_put(model, shardings(model, rules(model.config), mesh))
        processed = process(spread)
    chex.assert_trees_all_close(jax.device_get(processed), jax.device_get(process(model)), atol=1e-5)


def test_folding_twice_changes_nothing():
    once = process(peaky(GPT2_LIKE))
    chex.assert_trees_all_close(process(once), once, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "config", "message"),
    [
        (fold_layernorm, dataclasses.replace(GPT2_LIKE, norm="none"), "no norms"),
        (
            fold_layernorm,
            dataclasses.replace(LLAMA_LIKE, norm="layernorm", n_experts=2),
            "cannot go into experts",
        ),
        (center_writing_weights, LLAMA_LIKE, "needs LayerNorm.*norm='rmsnorm' keeps it"),
        (
            center_writing_weights,
            dataclasses.replace(GPT2_LIKE, norm_places="around"),
            "norm_places='around'",
        ),
        (factor_attention, LLAMA_LIKE, "rotary positions act between"),
        (factor_attention, dataclasses.replace(GPT2_LIKE, n_kv_heads=2), "share keys and values"),
        (factor_attention, dataclasses.replace(GPT2_LIKE, qk_norm="head"), "norms of queries and keys"),
        (factor_attention, dataclasses.replace(GPT2_LIKE, d_head=40), "wider than the residual stream"),
    ],
)
def test_what_a_step_needs_is_said(step, config, message):
    with pytest.raises(UserError, match=message):
        step(peaky(config))


def test_a_model_under_surgery_is_not_processed():
    with pytest.raises(UserError, match="process the model first, then read and edit it"):
        process(edit(peaky(GPT2_LIKE), at("blocks.0.attn_out", Zero())))


def test_a_processed_gpt2_is_saved_in_the_layout_that_has_such_models(tmp_path):
    processed = process(raw_model("gpt2"))
    back, _ = load(save(processed, tmp_path / "m"))
    assert back.config == processed.config
    chex.assert_trees_all_equal(back, processed)
    with pytest.raises(UserError, match="none of the families"):
        save(process(raw_model("llama")), tmp_path / "n")
