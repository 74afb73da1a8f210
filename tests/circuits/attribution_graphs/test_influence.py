"""Influence, pruning and scores against their definitions with a dense inverse in float64."""

from __future__ import annotations

import numpy as np
import pytest

from jax_interp.circuits.attribution_graphs import AttributionGraph, node_influence, prune, scores
from jax_interp.circuits.attribution_graphs.clean_run import ActiveFeatures
from jax_interp.core.errors import UserError

LAYERS, POS, PER_LAYER = 4, 5, 12


def random_graph(seed: int, *, dead: bool = False) -> AttributionGraph:
    """A graph with edges of random weight from earlier layers and positions; `dead`: some features have no edges."""
    rng = np.random.default_rng(seed)
    layer = np.repeat(np.arange(LAYERS), PER_LAYER).astype(np.int32)
    pos = np.concatenate([np.sort(rng.integers(0, POS, PER_LAYER)) for _ in range(LAYERS)]).astype(np.int32)
    n, logits = len(layer), 3
    active = ActiveFeatures(layer, pos, np.tile(np.arange(PER_LAYER), LAYERS).astype(np.int32), rng.random(n) + 0.1)
    of_layer = np.r_[layer, np.repeat(np.arange(LAYERS), POS), np.full(POS, -1)]
    of_pos = np.r_[pos, np.tile(np.arange(POS), LAYERS), np.arange(POS)]
    t_layer, t_pos = np.r_[layer, np.full(logits, LAYERS)], np.r_[pos, np.full(logits, POS - 1)]
    exists = (of_layer[None] < t_layer[:, None]) & (of_pos[None] <= t_pos[:, None])
    weights = rng.standard_normal(exists.shape) ** 3 * exists
    if dead:
        weights[:, ::5], weights[::7] = 0, 0
    probabilities = np.array([0.5, 0.3, 0.1])
    zeros = np.zeros(len(weights))
    return AttributionGraph(
        np.arange(POS), active, np.arange(n), weights, zeros, zeros, np.array([7, 2, 9]), probabilities, LAYERS, 20
    )


def dense_influence(A, start):
    """start (A + A² + …) with rows of |A| that sum to 1, by an inverse."""
    normal = np.abs(A) / np.maximum(np.abs(A).sum(1, keepdims=True), 1e-10)
    return start @ (np.linalg.inv(np.eye(len(A)) - normal) - np.eye(len(A))), normal


def reference(graph, node_threshold, edge_threshold):
    """Influence, kept nodes, kept edges and scores, from the formulas of the paper on the square matrix."""
    A = graph.adjacency().astype(np.float64)
    start = np.zeros(graph.n_nodes)
    start[graph.logit_nodes] = graph.logit_probabilities
    influence, normal = dense_influence(A, start)

    def kept(values, share):
        if share == 1:
            return values >= 0
        order = np.argsort(-values)
        enough = np.searchsorted(np.cumsum(values[order]) / values.sum(), share)
        return values >= values[order[min(enough, len(values) - 1)]]

    nodes = kept(influence, node_threshold)
    nodes[graph.token_nodes.start :] = True
    B = A * nodes[:, None] * nodes[None]
    total, pruned = dense_influence(B, start)
    importance = pruned * (total + start)[:, None]
    edges = kept(importance.reshape(-1), edge_threshold).reshape(A.shape) & (importance > 0)
    for _ in range(20):
        nodes[: graph.token_nodes.start] &= edges.any(0)[: graph.token_nodes.start]
        nodes[: graph.n_features] &= edges.any(1)[: graph.n_features]
        edges &= nodes[:, None] & nodes[None]
    tokens, errors = influence[graph.token_nodes].sum(), influence[graph.error_nodes].sum()
    explained = (1 - normal[:, graph.error_nodes].sum(1)) * (influence + start)
    return influence, nodes, edges, tokens / (tokens + errors), explained.sum() / (influence + start).sum()


@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.3, 0.5), (1.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("dead", [False, True])
def test_pruning_and_scores_are_those_of_the_dense_formulas(dead, thresholds):
    for seed in range(5):
        graph = random_graph(seed, dead=dead)
        influence, nodes, edges, replacement, completeness = reference(graph, *thresholds)
        np.testing.assert_allclose(node_influence(graph), influence, rtol=1e-10, atol=1e-14)
        pruned = prune(graph, *thresholds)
        np.testing.assert_array_equal(pruned.nodes, nodes)
        rows = np.r_[0 : graph.n_features, graph.logit_nodes.start : graph.n_nodes]
        np.testing.assert_array_equal(pruned.edges, edges[rows][:, : graph.logit_nodes.start])
        np.testing.assert_allclose(scores(graph).replacement, replacement, rtol=1e-10)
        np.testing.assert_allclose(scores(graph).completeness, completeness, rtol=1e-10)


def test_the_cumulative_influence_ends_at_one_and_kept_nodes_are_within_the_threshold():
    graph = random_graph(3)
    pruned = prune(graph, 0.6, 1.0)
    assert np.isclose(pruned.cumulative.max(), 1.0)
    features = pruned.nodes[: graph.n_features]
    assert pruned.cumulative[: graph.n_features][features].max() < 0.6 + node_influence(graph).max()


def test_an_edge_against_the_order_is_refused():
    graph = random_graph(0)
    graph.weights[0, graph.n_features - 1] = 1.0
    graph.weights[graph.n_features, 0] = 1.0
    with pytest.raises(UserError, match="against the order"):
        node_influence(graph)


@pytest.mark.parametrize("wrong", [{"node_threshold": 1.5}, {"edge_threshold": -0.1}])
def test_a_threshold_outside_0_to_1_is_refused(wrong):
    with pytest.raises(UserError, match="from 0 to 1"):
        prune(random_graph(0), **wrong)


def test_nodes_have_numbers_and_numbers_have_nodes():
    graph = random_graph(1)
    for number in range(graph.n_nodes):
        assert graph.number(graph.node(number)) == number
    assert (
        graph.edge(graph.node(graph.token_nodes.start), graph.node(graph.logit_nodes.start))
        == (graph.weights[graph.n_features, graph.token_nodes.start])
    )
    with pytest.raises(UserError, match="no node"):
        graph.node(graph.n_nodes)
