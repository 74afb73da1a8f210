"""Path expansion: its sums are the model's logits, and each term is the term of the definition."""

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.circuits import KL, LogitDifference
from jax_interp.circuits.paths import expand
from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, Replace, Scale, at, edit, read

METRIC = LogitDifference(jnp.asarray([3, 5]), 7)
PLAIN = dataclasses.replace(GPT2_LIKE, d_mlp=0, norm="none", qkv_bias=False, out_bias=False, mlp_bias=False)
MODELS = {
    "layernorm and biases": dataclasses.replace(GPT2_LIKE, d_mlp=0, unembed_bias=True, tied_embedding=False),
    "grouped heads, norms around": dataclasses.replace(LLAMA_LIKE, d_mlp=0, norm_places="around", qk_norm="head"),
    "norms after": dataclasses.replace(LLAMA_LIKE, d_mlp=0, norm_places="after", qk_norm="all heads"),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 60, (2, 6)), jnp.int32)
ALL = [heads for n in range(4) for layers in itertools.combinations(range(3), n)
       for heads in itertools.product(*([f"a{i}.h{h}" for h in range(4)] for i in layers))]  # fmt: skip


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def plain():
    """(a model without norms and biases, its expansion, the logits of all 125 paths)."""
    with jax.enable_x64(True):
        model = peaky(PLAIN, dtype=jnp.float64)
        expansion = expand(model, TOKENS)
        return model, expansion, {heads: np.asarray(expansion.path(heads)) for heads in ALL}


def term_by_definition(model, heads):
    """The logits of one path from the model's own weights and patterns, in NumPy: Π (A ⊗ W_V W_O) on the embedding."""
    _, acts = jax.jit(read(model, "blocks.0.resid_pre", "blocks.*.attn.pattern"))(TOKENS)
    block = model.blocks[0].block.attn
    y = np.asarray(acts["blocks.0.resid_pre"])
    for name in heads:
        layer, head = int(name[1]), int(name[-1])
        of_head = slice(8 * head, 8 * head + 8)
        W_V, W_O = np.asarray(block.v.weight[...])[layer][:, of_head], np.asarray(block.o.weight[...])[layer][of_head]
        y = np.asarray(acts["blocks.*.attn.pattern"])[layer, :, head] @ y @ W_V @ W_O
    return y @ np.asarray(model.embed.weight[...]).T


def test_the_125_paths_sum_to_the_logits(plain):
    model, expansion, terms = plain
    assert len(ALL) == expansion.n_paths == 125
    logits = np.asarray(jax.jit(model)(TOKENS))
    assert np.abs(sum(terms.values()) - logits).max() < 1e-12 * max(1, np.abs(logits).max())
    np.testing.assert_allclose(expansion.logits(), logits, rtol=0, atol=1e-12)
    for heads in ((), ("a1.h2",), ("a0.h3", "a2.h1"), ("a0.h0", "a1.h1", "a2.h2")):
        np.testing.assert_allclose(terms[heads], term_by_definition(model, heads), rtol=0, atol=1e-13)


def test_the_number_of_paths_of_gpt2_without_its_mlps():
    small = expand(peaky(dataclasses.replace(PLAIN, n_layers=12, n_heads=12, d_model=12, d_head=1)), TOKENS[:, :2])
    assert small.n_paths == 13**12 == 23_298_085_122_481


def test_sums_over_sets_of_paths_are_the_sums_of_their_terms(plain):
    _, expansion, terms = plain
    metric = {heads: np.asarray(METRIC(jnp.asarray(logits))) for heads, logits in terms.items()}
    by_length = expansion.by_length(METRIC)
    for n in range(4):
        np.testing.assert_allclose(by_length.values[n], sum(v for h, v in metric.items() if len(h) == n), atol=1e-12)
    through = expansion.through_heads(METRIC)
    for layer, head in itertools.product(range(3), range(4)):
        expected = sum(v for heads, v in metric.items() if f"a{layer}.h{head}" in heads)
        np.testing.assert_allclose(through.values[layer, head], expected, atol=1e-12)
    kept = np.random.default_rng(1).random((3, 4)) < 0.5
    only = sum(t for heads, t in terms.items() if all(kept[int(name[1]), int(name[-1])] for name in heads))
    np.testing.assert_allclose(expansion.logits(kept), only, rtol=0, atol=1e-12)
    each = jnp.stack([jnp.asarray(kept), jnp.ones((3, 4), bool)])  # another set for each prompt
    np.testing.assert_allclose(expansion.logits(each)[1], expansion.logits()[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_heads", [None, 2, 0])
def test_the_largest_paths_are_those_of_the_list(plain, max_heads):
    _, expansion, terms = plain
    metric = {heads: np.asarray(METRIC(jnp.asarray(logits))) for heads, logits in terms.items()}
    allowed = {heads: value for heads, value in metric.items() if len(heads) <= (3 if max_heads is None else max_heads)}
    ranked = sorted(allowed, key=lambda heads: -abs(allowed[heads].mean()))
    found = expansion.largest(METRIC, 7, max_heads=max_heads)
    biases = [label for label in found.axes["path"] if label.startswith("b")]
    assert not biases or max_heads == 0
    expected = [" -> ".join(("input", *heads)) for heads in ranked[:7]]
    assert list(found.axes["path"])[: len(expected)] == expected
    np.testing.assert_allclose(found.values[: len(expected)], [allowed[heads] for heads in ranked[:7]], atol=1e-12)
    every = expansion.largest(METRIC, 1000, max_heads=max_heads)
    np.testing.assert_allclose(every.values.sum(axis=0), sum(allowed.values()), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "padded"),
    [
        ("layernorm and biases", True),
        pytest.param("grouped heads, norms around", False, marks=pytest.mark.slow),
        pytest.param("norms after", True, marks=pytest.mark.slow),
    ],
)
def test_every_attention_only_model_is_the_sum_over_its_paths(name, padded):
    """With norms, biases, grouped heads and padding. Paths that begin at biases are part of the sum."""
    model = peaky(MODELS[name], dtype=jnp.float64)
    mask = (jnp.arange(6)[None] >= jnp.asarray([[0], [2]])) if padded else None
    expansion = expand(model, TOKENS, mask=mask, tolerance=1e-11)
    metric = np.asarray(METRIC(jax.jit(model)(TOKENS, mask=mask)))
    constant = METRIC(jnp.broadcast_to(expansion.constant[None, None], (2, 6, expansion.constant.size)))
    every = expansion.largest(METRIC, 10**6)
    np.testing.assert_allclose(every.values.sum(axis=0) + constant, metric, rtol=0, atol=1e-10)
    np.testing.assert_allclose(expansion.by_length(METRIC).values.sum(axis=0) + constant, metric, rtol=0, atol=1e-10)
    label = every.axes["path"][3].split(" -> ")
    term = METRIC(expansion.path(label[1:], start=label[0]))
    np.testing.assert_allclose(every.values[3], term, rtol=0, atol=1e-11)


def test_mlps_are_refused_or_constant():
    model = peaky(GPT2_LIKE, dtype=jnp.float64)
    with pytest.raises(UserError, match="not linear"):
        expand(model, TOKENS)
    expansion = expand(model, TOKENS, mlps="constant", tolerance=1e-11)
    starts = {label.split(" -> ")[0] for label in expansion.largest(METRIC, 10**6).axes["path"]}
    assert starts == {"input", "b0", "b1", "b2", "m0", "m1", "m2"}


def test_with_an_mlp_the_sum_over_paths_is_false():
    """f(a + b) ≠ f(a) + f(b): two parts of the input of an MLP, one by one and together."""
    model = peaky(dataclasses.replace(GPT2_LIKE, n_layers=1, norm="none"), dtype=jnp.float64)
    _, acts = jax.jit(read(model, "blocks.0.resid_pre", "blocks.0.attn_out"))(TOKENS)
    out = lambda value: jax.jit(read(edit(model, at("blocks.0.mlp_in", Replace(value))), "blocks.0.mlp_out"))(TOKENS)[1]
    parts = [out(acts[name])["blocks.0.mlp_out"] for name in ("blocks.0.resid_pre", "blocks.0.attn_out")]
    whole = out(acts["blocks.0.resid_pre"] + acts["blocks.0.attn_out"])["blocks.0.mlp_out"]
    assert jnp.max(jnp.abs(parts[0] + parts[1] - whole)) > 0.1 * jnp.max(jnp.abs(whole))


def test_surgery_that_is_no_linear_map_is_refused_and_other_surgery_is_expanded():
    model = peaky(PLAIN, dtype=jnp.float64)
    vector = jnp.linspace(-1, 1, PLAIN.d_model, dtype=jnp.float64)
    with pytest.raises(UserError, match="differs from the model's logits"):
        expand(edit(model, at("blocks.1.attn_out", Add(vector))), TOKENS)
    sharper = edit(model, at("blocks.1.attn.attn_scores", Scale(2.0)))  # another pattern, which is then fixed
    np.testing.assert_allclose(expand(sharper, TOKENS).logits(), jax.jit(sharper)(TOKENS), rtol=0, atol=1e-12)


def test_what_cannot_be_expanded_is_refused_by_name(plain):
    _, expansion, _ = plain
    for heads, start in ((["a1.h0", "a0.h0"], "input"), (["a0.h4"], "input"), (["m0"], "input"), (["a0.h0"], "b0")):
        with pytest.raises(UserError, match="no next head"):
            expansion.path(heads, start)
    with pytest.raises(UserError, match="no path begins"):
        expansion.path([], "b3")
    with pytest.raises(UserError, match="not a linear function"):
        expansion.through_heads(KL(jnp.ones((2, 61))))
    with pytest.raises(UserError, match="weights have shape"):
        expansion.logits(jnp.ones((4, 3)))
    with pytest.raises(UserError, match="max_heads"):
        expansion.largest(METRIC, limit=100)
    with pytest.raises(UserError, match="softcap"):
        expand(peaky(dataclasses.replace(PLAIN, logit_softcap=30.0)), TOKENS)
