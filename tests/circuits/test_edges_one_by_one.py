"""Exact edge patching against runs of circuits that lack one edge; information-flow routes against NumPy."""

from __future__ import annotations

import edge_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import GPT2_LIKE, LLAMA_LIKE, peaky

from jax_interp.circuits import Circuit, LogitDifference, circuit_metric, make_contrast, residual_graph
from jax_interp.circuits.edges import EAP, EAPIG, ExactEdges, FlowRoutes, edge_scores
from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, at, edit, replan

CLEAN, CORRUPTED = np.random.default_rng(1).integers(0, 50, (2, 3, 6)).astype(np.int32)
MASK = np.ones((3, 6), bool)
MASK[0, :2] = False


def pair(mask=None):
    return make_contrast(CLEAN, CORRUPTED, LogitDifference(3, 4), mask=mask)


@pytest.fixture(scope="module")
def expected():
    """For each edge, the effect of ablating it, in float64, from the transformer that is written as a graph."""
    model = peaky(GPT2_LIKE)
    graph = residual_graph(model)
    metric = lambda logits: logits[:, -1, 3] - logits[:, -1, 4]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        w = reference.weights_of(model)
        ablated = reference.forward(w, CORRUPTED)[1]
        run = jax.jit(lambda edges: metric(reference.circuit_logits(w, CLEAN, graph, edges, ablated)))
        full = graph.exists.astype(float)
        scores = np.zeros((3, *graph.shape))
        for t, s in np.argwhere(graph.exists).tolist():
            edges = full.copy()
            edges[t, s] = 0
            scores[:, t, s] = run(edges) - run(full)
    return scores


@pytest.mark.parametrize(("layout", "rows"), [((), 12), ("1", 1)])
def test_every_edge_is_patched(layout, rows, expected):
    scores = edge_scores(replan(peaky(GPT2_LIKE), layout), pair(), ExactEdges(rows_at_once=rows))
    np.testing.assert_allclose(scores.mean, expected.mean(0), atol=1e-5)
    np.testing.assert_allclose(scores.variance, expected.var(0, ddof=1), atol=1e-5)


def test_estimates_follow_exact_effects(expected):
    """EAP with integrated gradients is nearer to the exact effects than EAP on this model, and both are positive."""
    exact = expected.mean(0)[residual_graph(peaky(GPT2_LIKE)).exists]
    graph, correlations = residual_graph(peaky(GPT2_LIKE)), []
    for method in (EAP(), EAPIG(3)):
        found = np.asarray(edge_scores(peaky(GPT2_LIKE), pair(), method, prompts_at_once=2).mean)[graph.exists]
        correlations.append(np.corrcoef(found, exact)[0, 1])
    assert 0.3 < correlations[0] < correlations[1] < 1


def test_grouped_padded_and_edited_models():
    """Single edges of a model with grouped heads, padding and a steering vector, against circuits that lack them."""
    steered = edit(peaky(LLAMA_LIKE), at("blocks.1.resid_pre", Add(jnp.ones(32))))
    graph, contrast = residual_graph(steered), pair(MASK)
    scores = edge_scores(steered, contrast, ExactEdges(rows_at_once=30))
    run = jax.jit(circuit_metric)
    clean = run(steered, contrast, Circuit.full(graph))
    for edge in ("input->a0.h3<q>", "a0.h1->a1.h1<k>", "m0->a2.h0<v>", "a1.h2->m1", "a2.h3->logits", "m2->logits"):
        place = graph.index(edge)
        lacking = Circuit(jnp.asarray(graph.exists).at[place].set(False), graph)
        np.testing.assert_allclose(scores.mean[place], (run(steered, contrast, lacking) - clean).mean(), atol=2e-5)


def test_a_model_that_cannot_be_resumed_is_run_whole(monkeypatch, expected):
    monkeypatch.setattr("jax_interp.circuits.edges.exact._can_resume", lambda model, contrast: False)
    jax.clear_caches()
    scores = edge_scores(peaky(GPT2_LIKE), pair(), ExactEdges(rows_at_once=13))
    np.testing.assert_allclose(scores.mean, expected.mean(0), atol=1e-5)


def test_flow_routes_are_shares():
    model = peaky(GPT2_LIKE)
    graph = residual_graph(model)
    scores = edge_scores(model, pair(MASK), FlowRoutes())
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        w, inputs = reference.weights_of(model), {}

        def note(target, sources):
            inputs[target] = sum(sources.values()) + sum(
                layer["o"][1] for i, layer in enumerate(w["layers"]) if f"a{i}.h0" in sources
            )
            return 0.0

        sources = reference.forward(w, CLEAN, note, MASK)[1]
        inputs, sources = ({name: np.asarray(x) for name, x in found.items()} for found in (inputs, sources))
    norm = lambda x: np.abs(x).sum(-1)
    for row, target in enumerate(graph.target_names):
        near = np.stack(
            [
                np.maximum(norm(inputs[target]) - norm(inputs[target] - sources[s]), 0) * graph.exists[row, i]
                for i, s in enumerate(graph.source_names)
            ]
        )
        share = (near / near.sum(0) * MASK).sum(2) / MASK.sum(1)
        np.testing.assert_allclose(scores.mean[row], share.mean(1), atol=1e-5, err_msg=target)
    with pytest.raises(UserError, match="ablated="):
        edge_scores(model, pair(), FlowRoutes(), ablated={})


def test_refusals():
    for wrong in (0, 1.5, True):
        with pytest.raises(UserError, match="rows_at_once"):
            ExactEdges(rows_at_once=wrong)
