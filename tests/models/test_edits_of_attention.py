"""Edits inside attention: results of heads, masked scores and patterns, norms of a single key head."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, Clamp, Replace, Scale, Zero, at, depth_of, edit, grad_at, read, sites, survey
from jax_interp.surgery.lora import LoRA
from jax_interp.surgery.select import replace_each

AROUND = dataclasses.replace(LLAMA_LIKE, norm_places="around")


def attn_out(call, model, tokens):
    return np.asarray(call(read(model, "blocks.1.attn_out"), tokens)[1]["blocks.1.attn_out"], np.float64)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("config", [AROUND, LLAMA_LIKE, GPT2_LIKE], ids=["norm after", "no bias", "bias"])
def test_the_output_is_the_sum_of_the_edited_results(call, tokens, config, dtype):
    """Where every result is zero only the bias is left, and no rounding that a norm would bring to full size."""
    model = peaky(config, dtype=dtype)
    ablated = attn_out(call, edit(model, at("blocks.1.attn.result", Zero(), pos=slice(3, None))), tokens)
    bias = model.blocks[0].block.attn.o.bias
    left = np.zeros(config.d_model) if bias is None else np.asarray(bias[1], np.float64)
    np.testing.assert_array_equal(ablated[:, 3:], np.broadcast_to(left, ablated[:, 3:].shape))
    np.testing.assert_array_equal(ablated[:, :3], attn_out(call, model, tokens)[:, :3])
    alone = edit(model, at("blocks.1.attn.result", Zero(), head=[0, 1, 3]))
    by_z = edit(model, at("blocks.1.attn.z", Zero(), head=[0, 1, 3]))
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(attn_out(call, alone, tokens), attn_out(call, by_z, tokens), atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_an_edit_of_results_that_changes_nothing_changes_no_bit(call, tokens, dtype):
    model = peaky(LLAMA_LIKE, dtype=dtype)
    same = edit(model, at("blocks.*.attn.result", Scale(1.0)))
    np.testing.assert_array_equal(call(same, tokens), call(model, tokens))


def test_the_gradient_of_each_result_is_that_of_the_output(tokens):
    model, metric = peaky(LLAMA_LIKE), lambda logits: jnp.sum(jnp.sin(logits))
    names = ("blocks.1.attn_out", "blocks.1.attn.result")
    at_output, at_result = (grad_at(model, name)(metric)(tokens)[1][name] for name in names)
    for head in range(4):
        np.testing.assert_allclose(at_result[:, :, head], at_output, atol=1e-5 * np.abs(at_output).max())


def test_results_are_refused_where_they_are_not_what_the_output_projection_computes(call, tokens):
    keys = jax.random.split(jax.random.key(0), 3)
    model = replace_each(peaky(LLAMA_LIKE), "blocks.*.attn.o", LoRA, keys)
    edited = edit(model, at("blocks.1.attn.o.low_rank", Add(jnp.ones(()))))
    with pytest.raises(UserError, match=r"an edit below attn.o changes what attn.o computes"):
        call(read(edited, "blocks.*.attn.result"), tokens)
    assert "blocks.1.attn.result" in sites(edited)(tokens)
    assert depth_of(model) == 3


EDITS = (Zero(), Scale(0.5), Scale(-2.0), Clamp(-5.0, 5.0), Replace(0.3), Add(jnp.ones(())), jnp.tanh)


@pytest.mark.parametrize("name", ["attn_scores", "pattern"])
@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_no_edit_lets_a_token_attend_to_later_tokens_or_padding(call, name, side):
    edits = [at(f"blocks.{i // 4}.attn.{name}", fn, head=i % 4) for i, fn in enumerate(EDITS)]
    model = edit(peaky(LLAMA_LIKE), edits)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 8)))
    keep = {"none": np.ones(8, bool), "left": np.arange(8) >= 2, "right": np.arange(8) < 6}[side]
    mask = None if side == "none" else jnp.asarray(np.stack([keep, np.ones(8, bool)]))
    logits = call(model, tokens, mask=mask)
    last = np.flatnonzero(keep)[-1]
    other = jnp.where(jnp.asarray(keep) & (jnp.arange(8) < last), tokens[:1], (tokens[:1] + 7) % 64)
    changed = call(model, tokens.at[:1].set(other), mask=mask)
    np.testing.assert_array_equal(changed[0, keep][:-1], logits[0, keep][:-1])
    np.testing.assert_array_equal(changed[1], logits[1])


def test_a_pattern_that_is_patched_keeps_its_weights(call, tokens):
    """Weights at keys that a token may attend to are used as they are; they need not sum to one."""
    model = peaky(LLAMA_LIKE)
    weights = jax.random.uniform(jax.random.key(0), (2, 4, 9, 9))
    _, acts = call(
        read(edit(model, at("blocks.0.attn.pattern", Replace(weights))), "blocks.0.attn.z", "blocks.0.attn.v"), tokens
    )
    v = np.repeat(np.asarray(acts["blocks.0.attn.v"], np.float64), 2, axis=2)
    wanted = np.einsum("bhpk,bkhd->bphd", np.tril(np.asarray(weights, np.float64)), v)
    np.testing.assert_allclose(acts["blocks.0.attn.z"], wanted, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_norms_of_queries_and_keys_have_an_axis_of_heads(call, tokens, kv_heads):
    model = peaky(dataclasses.replace(LLAMA_LIKE, n_kv_heads=kv_heads, qk_norm="head"))
    named = survey(model)(tokens)
    assert named["blocks.0.attn.q_norm.scale"].axes == ("batch", "pos", "head", "one")
    assert named["blocks.0.attn.k_norm.scale"].axes == ("batch", "pos", "kv_head", "one")
    assert named["blocks.0.attn.k_norm.normalized"].shape == (2, 9, kv_heads, 8)
    call(edit(model, at("blocks.*.attn.k_norm.normalized", Zero(), head=kv_heads - 1)), tokens)
