"""Weights by role, circuits, composition, singular vectors and neuron statistics against NumPy and closed forms."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp import analysis
from jax_interp.analysis.neurons import central_moments
from jax_interp.core.errors import UserError
from jax_interp.surgery import Activations, Scale, at, edit, read, replan

CONFIGS = {"gpt2": GPT2_LIKE, "llama": LLAMA_LIKE}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return replan(peaky(CONFIGS[request.param]), 1)


def test_weights_in_every_layout_give_the_models_values(model, call, tokens):
    """q, k, v, z, mlp.pre and what they come from, recomputed from the weights by role."""
    names = ("blocks.*.ln1.normalized", "blocks.*.attn.q", "blocks.*.attn.k", "blocks.*.attn.v", "blocks.*.attn.z")
    _, acts = call(read(model, *names, "blocks.*.attn.result"), tokens)
    for form in (model, replan(model), replan(model, "*"), edit(model, at("embed", Scale(2.0)))):
        W_Q, W_K, W_V, W_O = (np.asarray(getattr(analysis, n)(form)) for n in ("W_Q", "W_K", "W_V", "W_O"))
        assert W_Q.shape == W_K.shape == (3, 4, 32, 8)
        assert W_O.shape == (3, 4, 8, 32)
    norms = [segment.block if hasattr(segment, "block") else segment for segment in replan(model, "*").blocks]
    group = 4 // model.config.n_kv_heads
    for layer, block in enumerate(norms):
        y = np.asarray(acts["blocks.*.ln1.normalized"][layer]) * np.asarray(block.ln1.weight[...])
        y = y if model.config.norm == "rmsnorm" else y + np.asarray(block.ln1.bias[...])
        for name, weight, bias in (("q", W_Q, analysis.b_Q), ("k", W_K, analysis.b_K), ("v", W_V, analysis.b_V)):
            wanted = np.einsum("bpd,hdk->bphk", y, weight[layer]) + np.asarray(bias(model)[layer])
            got = np.asarray(acts[f"blocks.*.attn.{name}"][layer])
            np.testing.assert_allclose(got.repeat(1 if name == "q" else group, 2), wanted, atol=1e-5)
    result = np.einsum("lbphk,lhkd->lbphd", acts["blocks.*.attn.z"], W_O)
    np.testing.assert_allclose(acts["blocks.*.attn.result"], result, atol=1e-5)
    assert analysis.W_K(model, grouped=True).shape[1] == model.config.n_kv_heads


def test_circuits(model):
    ov, qk = analysis.OV(model), analysis.QK(model)
    W_Q, W_K, W_V, W_O, W_E, W_U = (
        np.asarray(getattr(analysis, n)(model), np.float64) for n in ("W_Q", "W_K", "W_V", "W_O", "W_E", "W_U")
    )
    np.testing.assert_allclose(ov.AB, W_V @ W_O, atol=1e-4)
    np.testing.assert_allclose(qk.AB, W_Q @ np.swapaxes(W_K, -1, -2), atol=1e-4)
    full = analysis.full_OV(model, 1, 2)
    np.testing.assert_allclose(full.AB, W_E @ W_V[1, 2] @ W_O[1, 2] @ W_U, atol=1e-3)
    np.testing.assert_allclose(analysis.full_QK(model, 1, 2).AB, W_E @ W_Q[1, 2] @ W_K[1, 2].T @ W_E.T, atol=1e-3)
    values = np.linalg.eigvals(W_E @ W_V[1, 2] @ W_O[1, 2] @ W_U)
    wanted = values.sum().real / np.abs(values).sum()
    np.testing.assert_allclose(analysis.eigen_copying_score(model)[1, 2], wanted, atol=1e-3)


def test_copying_score_of_a_head_that_copies_is_one():
    model = peaky(replace(GPT2_LIKE, n_layers=1, n_heads=1, n_kv_heads=1, d_head=32))  # d_head = d_model
    block = model.blocks[0].block
    for sign in (1, -1):
        block.attn.v.weight[...] = jnp.eye(32)[None]
        block.attn.o.weight[...] = sign * jnp.eye(32)[None]
        np.testing.assert_allclose(analysis.eigen_copying_score(model), [[sign]], atol=1e-4)
        negative = -analysis.W_E(model)  # had the head been given tokens with the other sign, the opposite
        np.testing.assert_allclose(analysis.eigen_copying_score(model, negative), [[-sign]], atol=1e-4)
        np.testing.assert_allclose(analysis.full_OV(model, 0, 0, negative).AB, -analysis.full_OV(model, 0, 0).AB)


@pytest.mark.parametrize("mode", ["Q", "K", "V"])
def test_composition_scores(model, mode):
    W_Q, W_K, W_V, W_O = (np.asarray(getattr(analysis, n)(model), np.float64) for n in ("W_Q", "W_K", "W_V", "W_O"))
    ov, qk = W_V @ W_O, W_Q @ np.swapaxes(W_K, -1, -2)
    reader = {"Q": qk, "K": np.swapaxes(qk, -1, -2), "V": ov}[mode]
    scores = jax.jit(analysis.all_composition_scores, static_argnums=1)(model, mode)
    assert scores.shape == (3, 4, 3, 4)
    norm = np.linalg.norm
    np.testing.assert_allclose(
        scores[0, 1, 2, 3], norm(ov[0, 1] @ reader[2, 3]) / norm(ov[0, 1]) / norm(reader[2, 3]), rtol=1e-4
    )
    for first in range(3):
        assert not np.asarray(scores[first, :, : first + 1]).any()


def test_the_baseline_is_what_random_heads_score():
    model = peaky(replace(GPT2_LIKE, n_layers=6))
    mean, std = analysis.composition_baseline(model, "V", jax.random.key(0))
    scores = np.asarray(analysis.all_composition_scores(model, "V"))
    scores = scores[scores > 0]  # heads of random weights
    np.testing.assert_allclose(scores.mean(), mean, rtol=0.02)
    np.testing.assert_allclose(scores.std(), std, rtol=0.3)
    with pytest.raises(UserError, match="choose from Q, K, V"):
        analysis.composition_baseline(model, "O", jax.random.key(0))  # type: ignore[arg-type]


def test_singular_vectors(model):
    W_V, W_O, W_U, W_out = (np.asarray(getattr(analysis, n)(model), np.float64) for n in ("W_V", "W_O", "W_U", "W_out"))
    found = analysis.singular_vectors(model, "OV", 2, 1, num_vectors=3)
    _, s, vt = np.linalg.svd(W_V[2, 1] @ W_O[2, 1])
    np.testing.assert_allclose(found.values, s[:3], rtol=1e-3)
    np.testing.assert_allclose(np.abs(found.logits), np.abs(vt[:3] @ W_U), atol=2e-3)
    found = analysis.singular_vectors(model, "w_out", 0, num_vectors=2)
    _, s, vt = np.linalg.svd(W_out[0])
    np.testing.assert_allclose(np.abs(found.vectors), np.abs(vt[:2]), atol=2e-3)
    analysis.singular_vectors(model, "w_in", 0)
    with pytest.raises(UserError, match="takes a head"):
        analysis.singular_vectors(model, "OV", 0)
    with pytest.raises(UserError, match="layers 0 to 2"):
        analysis.singular_vectors(model, "w_in", 3)


def test_neuron_statistics_in_numpy():
    model = peaky(GPT2_LIKE)
    found = jax.jit(analysis.neuron_statistics)(model)
    layer, neuron = 1, 7
    block = model.blocks[0].block
    W_in, W_out, W_U = (np.asarray(getattr(analysis, n)(model), np.float64) for n in ("W_in", "W_out", "W_U"))
    into = W_in[layer, :, neuron] * np.asarray(block.ln2.weight[layer], np.float64)
    into, out = into - into.mean(), W_out[layer, neuron] - W_out[layer, neuron].mean()
    np.testing.assert_allclose(found.in_norm[layer, neuron], np.linalg.norm(into), rtol=1e-4)
    np.testing.assert_allclose(found.out_norm[layer, neuron], np.linalg.norm(out), rtol=1e-4)
    cosine = into @ out / np.linalg.norm(into) / np.linalg.norm(out)
    np.testing.assert_allclose(found.in_out_cosine[layer, neuron], cosine, atol=1e-5)
    columns = W_U * np.asarray(model.ln_final.weight[...], np.float64)[:, None]
    columns = columns - columns.mean(0)
    cosines = out @ columns / np.linalg.norm(columns, axis=0) / np.linalg.norm(out)
    centred = cosines - cosines.mean()
    np.testing.assert_allclose(found.logit_variance[layer, neuron], cosines.var(), rtol=1e-4)
    np.testing.assert_allclose(found.logit_kurtosis[layer, neuron], (centred**4).mean() / cosines.var() ** 2, rtol=1e-3)
    np.testing.assert_allclose(found.logit_skew[layer, neuron], (centred**3).mean() / cosines.std() ** 3, atol=1e-3)
    assert found.gate_norm is None


def test_an_entropy_neuron_moves_no_token_against_another(call):
    """One that writes where the unembedding does not look: no logit variance, all of its norm in the null space; and
    yet it changes the entropy, through the final norm's scale."""
    model = peaky(replace(GPT2_LIKE, tied_embedding=False))
    hidden = jnp.zeros(32).at[4].set(1.0).at[9].set(-1.0)  # mean zero, so that LayerNorm keeps it
    columns = np.asarray(model.unembed.weight[...]) * np.asarray(model.ln_final.weight[...])[:, None]
    columns[4] = columns[9]
    model.unembed.weight[...] = jnp.asarray(columns / np.asarray(model.ln_final.weight[...])[:, None])
    down = model.blocks[0].block.mlp.down
    down.weight[...] = down.weight[...].at[2, 5].set(1000 * hidden)
    model.ln_final.bias[...] = jnp.zeros(32)  # what it adds to the logits is not scaled
    found = analysis.neuron_statistics(model, null_dims=2)
    np.testing.assert_allclose(found.null_fraction[2, 5], 1, atol=1e-3)
    assert found.logit_variance[2, 5] < 1e-8
    assert np.argmax(found.out_norm[2]) == 5
    others = np.delete(np.asarray(found.logit_variance[2]), 5)
    assert others.min() > 1e-4

    tokens = jnp.asarray([[3, 1, 4, 1, 5]])
    without = edit(model, at("blocks.2.mlp.post", Scale(0.0), feature=5))
    logits, others = (np.asarray(call(m, tokens), np.float64)[0, -1] for m in (model, without))
    entropy, other = (-(p * np.log(p)).sum() for p in (np.exp(x) / np.exp(x).sum() for x in (logits, others)))
    assert abs(entropy - other) > 0.05
    factor = np.linalg.norm(logits) / np.linalg.norm(others)  # but for one factor, the same logits
    np.testing.assert_allclose(factor * others, logits, atol=1e-3 * np.abs(logits).max())


def test_moments():
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    variance, skew, kurtosis = central_moments(jnp.asarray(x))
    np.testing.assert_allclose([variance, skew, kurtosis], [1, 0, 3], atol=0.05)
    _, _, two_points = central_moments(jnp.asarray([1.0, -1.0]))
    np.testing.assert_allclose(two_points, 1)


def test_how_neurons_fire(call, tokens):
    model = peaky(GPT2_LIKE)
    _, acts = call(read(model, analysis.needed(model, analysis.activation_statistics)), tokens)
    mask = np.ones(tokens.shape, bool)
    mask[1, 5:] = False
    found = analysis.activation_statistics(acts, mask=jnp.asarray(mask))
    x = np.asarray(acts["blocks.*.mlp.post"], np.float64)[1][mask]
    np.testing.assert_allclose(found.mean[1], x.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.variance[1], x.var(0), rtol=1e-3)
    kurtosis = ((x - x.mean(0)) ** 4).mean(0) / x.var(0) ** 2
    np.testing.assert_allclose(found.kurtosis[1], kurtosis, rtol=1e-3)
    rate = (np.asarray(acts["blocks.*.mlp.pre"])[1][mask] > 0).mean(0)
    np.testing.assert_allclose(found.rate[1], rate, atol=1e-5)


def test_growth_of_a_stream_that_grows_by_a_known_factor():
    """x_{l+1} = 1.045 x_l, with an outlier at the first position (Heimersheim & Turner 2023)."""
    x = np.random.default_rng(0).standard_normal((2, 6, 16)).astype(np.float32)
    x[:, 0] *= 300 * np.linspace(1, 3, 16)
    stream = np.stack([x * 1.045**layer for layer in range(5)])
    acts = Activations(
        {
            "blocks.*.resid_pre": jnp.asarray(stream[:-1]),
            "blocks.-1.resid_post": jnp.asarray(stream[-1]),
            "blocks.*.attn_out": jnp.asarray(stream[1:] - stream[:-1]),
        },
        4,
    )
    found = jax.jit(analysis.norm_growth, static_argnames=("exclude_bos", "centred"))(acts)
    np.testing.assert_allclose(found.by_layer, np.full(4, 1.045), atol=1e-5)
    np.testing.assert_allclose(found.rate(1, 3), 1.045, atol=1e-5)
    np.testing.assert_allclose(found.attn_out, 0.045 * found.resid[:-1], rtol=1e-3)
    assert found.mlp_out is None
    wanted = np.exp(np.log(np.linalg.norm(x[:, 1:], axis=-1)).mean())
    np.testing.assert_allclose(found.resid[0], wanted, rtol=1e-5)
    spread = np.exp(np.log(16**0.5 * x[:, 1:].std(-1)).mean())
    np.testing.assert_allclose(analysis.norm_growth(acts, centred=True).resid[0], spread, rtol=1e-5)
    mask = jnp.asarray([[False, True, True, True, True, True], [True] * 5 + [False]])
    masked = np.exp(np.log(np.linalg.norm(np.concatenate([x[0, 2:], x[1, 1:5]]), axis=-1)).mean())
    np.testing.assert_allclose(analysis.norm_growth(acts, mask=mask).resid[0], masked, rtol=1e-5)
    with pytest.raises(UserError, match="from layer 3 to 2"):
        found.rate(3, 2)


def test_what_a_family_does_not_have():
    with pytest.raises(UserError, match="attention only"):
        analysis.W_in(peaky(replace(GPT2_LIKE, d_mlp=0)))
    with pytest.raises(UserError, match="not gated"):
        analysis.W_gate(peaky(GPT2_LIKE))
    with pytest.raises(UserError, match="learns no position vectors"):
        analysis.W_pos(peaky(LLAMA_LIKE))
    with pytest.raises(UserError, match="4 experts"):
        analysis.neuron_statistics(peaky(replace(LLAMA_LIKE, n_experts=4)))
