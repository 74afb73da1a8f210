"""Runs of circuits against a transformer that is written as a graph, and the laws that they keep."""

from __future__ import annotations

import dataclasses

import edge_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.circuits import (
    Circuit,
    LogitDifference,
    baseline,
    circuit_logits,
    circuit_metric,
    circuit_metrics,
    make_contrast,
    residual_graph,
    source_values,
)
from jax_interp.core.errors import UserError
from jax_interp.models import Config, init
from jax_interp.surgery import replan

METRIC = LogitDifference(3, 4)
run = jax.jit(circuit_metric)


def contrast(prompts=3, n=6, *, mask=None, vocab=50):
    clean, corrupted = np.random.default_rng(1).integers(0, vocab, (2, prompts, n))
    return make_contrast(clean.astype(np.int32), corrupted.astype(np.int32), METRIC, mask=mask)


def weights(graph, seed=0):
    return np.random.default_rng(seed).uniform(size=graph.shape).astype(np.float32)


LAYOUTS = {"scanned": (), "unrolled": "*", "mixed": "1"}


@pytest.mark.parametrize(("layout", "padded"), [("scanned", True), ("unrolled", False), ("mixed", False)])
def test_a_circuit_run_is_its_formula(layout, padded):
    model = peaky(GPT2_LIKE)
    graph = residual_graph(model)
    mask = np.ones((3, 6), bool)
    mask[0, :2] = not padded
    pair = contrast(mask=mask if padded else None)
    edges = weights(graph)
    found = jax.jit(circuit_logits)(replan(model, LAYOUTS[layout]), pair, Circuit(jnp.asarray(edges), graph))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        w = reference.weights_of(model)
        ablated = reference.forward(w, pair.corrupted, mask=pair.mask)[1]
        expected = reference.circuit_logits(w, pair.clean, graph, edges, ablated, pair.mask)[:, -1]
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-5)


def test_sizes_of_graphs():
    tiny = residual_graph(peaky(GPT2_LIKE))
    assert tiny.shape == (40, 16)
    assert tiny.n_edges == 262
    config = dataclasses.replace(GPT2_LIKE, n_layers=12, n_heads=12, d_model=768, d_mlp=3072)
    small = residual_graph(jax.eval_shape(lambda: init(config, jax.random.key(0))))
    assert small.shape == (445, 157)
    assert small.n_edges == sum(36 * (1 + 13 * i) + (13 + 13 * i) for i in range(12)) + 157 == 32_491


VARIANTS = {
    "grouped": LLAMA_LIKE,
    "attention only": dataclasses.replace(GPT2_LIKE, d_mlp=0, mlp_bias=False),
    "parallel, one norm": dataclasses.replace(GPT2_LIKE, parallel="one norm"),
    "parallel, two norms": dataclasses.replace(LLAMA_LIKE, parallel="two norms"),
    "mixture of experts": dataclasses.replace(LLAMA_LIKE, n_experts=3),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_edges_are_the_clean_run_and_none_the_corrupted_one(variant):
    model, pair = peaky(VARIANTS[variant]), contrast()
    graph = residual_graph(model)
    clean, corrupted = baseline(model, pair)
    np.testing.assert_allclose(run(model, pair, Circuit.full(graph)), clean, atol=1e-5)
    np.testing.assert_allclose(run(model, pair, Circuit.empty(graph)), corrupted, atol=1e-5)
    assert np.abs(clean - corrupted).max() > 0.01


def test_the_number_of_edges_of_the_variants():
    grouped = residual_graph(peaky(VARIANTS["grouped"]))
    assert grouped.n_edges == sum(8 * (1 + 5 * i) + (5 + 5 * i) for i in range(3)) + 16
    assert sum(name.endswith("<k>") for name in grouped.target_names) == 3 * 2
    only = residual_graph(peaky(VARIANTS["attention only"]))
    assert only.n_edges == sum(12 * (1 + 4 * i) for i in range(3)) + 13
    parallel = residual_graph(peaky(VARIANTS["parallel, one norm"]))
    assert parallel.n_edges == 262 - 3 * 4
    with pytest.raises(UserError, match="does not exist"):
        parallel.index("a1.h0->m1")
    parallel.index("a0.h3->m1")


def test_grouped_heads_equal_heads_with_repeated_keys():
    """A key head that two query heads share is the same as two heads with equal weights and equal edges."""
    grouped = peaky(LLAMA_LIKE)
    apart = init(dataclasses.replace(LLAMA_LIKE, n_kv_heads=4), jax.random.key(0))
    leaves = jax.tree.leaves(grouped)
    repeated = []
    for leaf, like in zip(leaves, jax.tree.leaves(apart), strict=True):
        if leaf.shape != like.shape:
            split = leaf.reshape(*leaf.shape[:-1], 2, 8)
            leaf = jnp.repeat(split, 2, axis=-2).reshape(like.shape)
        repeated.append(leaf)
    apart = jax.tree.unflatten(jax.tree.structure(apart), repeated)
    pair, graph, wide = contrast(), residual_graph(grouped), residual_graph(apart)
    edges = weights(graph)
    row = {name: i for i, name in enumerate(graph.target_names)}
    shared = lambda name: name[:-4] + str(int(name[-4]) // 2) + name[-3:] if name[-2] in "kv" else name
    rows = np.asarray([row[shared(name)] for name in wide.target_names])
    found = run(grouped, pair, Circuit(jnp.asarray(edges), graph))
    np.testing.assert_allclose(found, run(apart, pair, Circuit(jnp.asarray(edges[rows]), wide)), atol=1e-5)


def test_the_gradient_of_an_edge_is_a_difference_quotient():
    model, pair = peaky(GPT2_LIKE), contrast()
    graph = residual_graph(model)
    edges = jnp.asarray(weights(graph))
    loss = jax.jit(lambda model, edges: jnp.sum(circuit_metric(model, pair, Circuit(edges, graph))))
    gradient = jax.jit(jax.grad(loss, argnums=1))(model, edges)
    for edge in ("input->a0.h1<q>", "a0.h2->a1.h0<v>", "m0->m2", "a1.h3->logits"):
        at = graph.index(edge)
        step = 1e-2
        slope = (loss(model, edges.at[at].add(step)) - loss(model, edges.at[at].add(-step))) / (2 * step)
        assert abs(slope - gradient[at]) < 2e-3 + 0.02 * abs(slope), edge
    assert not np.asarray(gradient)[~graph.exists].any()


def test_many_circuits_in_groups_of_prompts():
    model, pair = peaky(GPT2_LIKE), contrast(prompts=5)
    graph = residual_graph(model)
    scores = jnp.asarray(weights(graph))
    circuits = jax.vmap(lambda n: Circuit.largest(graph, scores, n))(jnp.array([0, 20, 262]))
    assert circuits.edges.sum((1, 2)).tolist() == [0, 20, 262]
    whole = jax.jit(circuit_metrics)(model, pair, circuits)
    parts = jax.jit(lambda *args: circuit_metrics(*args, prompts_at_once=2, circuits_at_once=2))(model, pair, circuits)
    np.testing.assert_allclose(whole, parts, atol=1e-5)
    one = run(model, pair, Circuit.largest(graph, scores, 20))
    np.testing.assert_allclose(whole[1], one, atol=1e-5)


def test_other_ablated_values():
    """With zeros for every source, no edges leave the biases. With the values of the clean run, nothing changes."""
    model, pair = peaky(GPT2_LIKE), contrast()
    graph = residual_graph(model)
    own = source_values(model, graph, pair.clean)
    np.testing.assert_allclose(run(model, pair, Circuit.empty(graph), own), baseline(model, pair)[0], atol=1e-5)
    zeros = jax.tree.map(jnp.zeros_like, own)
    found = jax.jit(circuit_logits)(model, pair, Circuit.empty(graph), zeros)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        w = reference.weights_of(model)
        bias = sum(layer["o"][1] for layer in w["layers"])
        expected = reference.norm(bias, w["ln_final"]) @ w["embed"].T
    np.testing.assert_allclose(found[:, 0], np.broadcast_to(expected, found[:, 0].shape), atol=1e-5)
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=1, keepdims=True), source_values(model, graph, pair.corrupted))
    broadcast = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), mean, own)
    edges = Circuit(jnp.asarray(weights(graph)), graph)
    np.testing.assert_allclose(run(model, pair, edges, mean), run(model, pair, edges, broadcast), atol=1e-6)


def test_edges_of_single_positions():
    """Edges that differ by position: cut at all positions they are the edges without this axis."""
    model, pair = peaky(GPT2_LIKE), contrast()
    graph = residual_graph(model)
    edges = jnp.asarray(weights(graph))
    everywhere = jnp.broadcast_to(edges[:, :, None], (*graph.shape, 6))
    np.testing.assert_allclose(
        run(model, pair, Circuit(everywhere, graph)), run(model, pair, Circuit(edges, graph)), atol=1e-6
    )
    logits = jnp.ones((*graph.shape, 6)).at[graph.index("a2.h1->logits")].set(0.0)
    last = jnp.ones((*graph.shape, 6)).at[(*graph.index("a2.h1->logits"), 5)].set(0.0)
    np.testing.assert_allclose(
        run(model, pair, Circuit(logits, graph)), run(model, pair, Circuit(last, graph)), atol=1e-6
    )


def test_names_of_edges():
    graph = residual_graph(peaky(GPT2_LIKE))
    names = graph.edge_names()
    assert len(names) == len(set(names)) == 262
    assert Circuit.of(graph, names).edges.sum() == 262
    kept = ["input->a0.h1<v>", "a0.h1->a2.h3<q>", "m1->logits"]
    circuit = Circuit.of(graph, kept)
    assert set(circuit.edge_names()) == set(kept)
    assert circuit.n_edges == 3
    with pytest.raises(UserError, match=r"no source 'a0\.h9'"):
        graph.index("a0.h9->m0")
    with pytest.raises(UserError, match="no edge"):
        graph.index("a0.h1")
    with pytest.raises(UserError, match="not computed before"):
        graph.index("m2->a0.h1<q>")


def test_refusals():
    after = peaky(Config(n_layers=2, d_model=32, n_heads=4, d_mlp=48, vocab_size=50, n_ctx=9, norm_places="around"))
    with pytest.raises(UserError, match="ln1_post"):
        residual_graph(after)
    model, pair = peaky(GPT2_LIKE), contrast()
    graph = residual_graph(model)
    with pytest.raises(UserError, match=r"\(3, 3\)"):
        circuit_metric(model, pair, Circuit(jnp.ones((3, 3)), graph))
    with pytest.raises(UserError, match="give a Circuit"):
        circuit_metric(model, pair, jnp.ones(graph.shape))
    with pytest.raises(UserError, match="scores have shape"):
        Circuit.largest(graph, jnp.ones((3, 3)), 2)
