"""Influence of nodes on the logits, pruning, and the two scores of an attribution graph (Ameisen et al. 2025).

With A[t, s] = |weight| / (sum of |weights| into t) and w the probabilities of the logits, the influence of all nodes is

    w A + w A² + w A³ + … = w ((I - A)^-1 - I)

A graph has no cycles: a feature's edges come from earlier layers only. The sum is therefore computed from the logits
down, one layer at a time. Each edge is used once, and no inverse is formed. Definitions and thresholds are those of
circuit-tracer.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.circuits.attribution_graphs.graph import AttributionGraph
from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned:
    """What is kept of a graph.

    Attributes:
      graph: the whole graph.
      nodes: whether each node is kept. Tokens and logits always are.
      edges: whether each edge is kept, for the rows and columns of `graph.weights`.
      cumulative: for each node, the share of all influence that belongs to nodes of at least its influence.
      node_threshold, edge_threshold: the shares of influence that were to be kept.
    """

    graph: AttributionGraph
    nodes: Bool[np.ndarray, " node"]
    edges: Bool[np.ndarray, "target source"]
    cumulative: Float[np.ndarray, " node"]
    node_threshold: float
    edge_threshold: float


@dataclasses.dataclass(frozen=True)
class Scores:
    """How much of the computation goes through nodes that can be interpreted.

    Attributes:
      replacement: the influence of tokens, as a share of the influence of tokens and errors together.
      completeness: the share of incoming edges that do not come from errors, weighted by the influence of the target.
    """

    replacement: float
    completeness: float


def influence_of_sources(
    weights: Float[np.ndarray, "row source"],
    rows: Int[np.ndarray, " target"],
    is_source: Int[np.ndarray, " target"],
    order: Int[np.ndarray, " target"],
    start: Float[np.ndarray, " target"],
    sums: Float[np.ndarray, " row"] | None = None,
) -> tuple[Float[np.ndarray, " source"], Float[np.ndarray, " target"]]:
    """The influence of all sources of some targets.

    Args:
      weights: the edges. Signs do not matter.
      rows: the row of each target.
      is_source: for each target the column in which it is a source; -1 if it is none (logits).
      order: for each target its place in the order of the computation: the layer, and for logits a larger number. Edges
        go from a smaller to a larger number.
      start: the influence that a target has by itself: the probability of a logit, 0 for features.
      sums: the sum of |weights| over each row of `weights`, if it is known.

    Returns:
      (the influence of each source, the influence of each target including `start`).

    Raises:
      UserError: an edge goes against the order.
    """
    influence = np.zeros(weights.shape[1], np.float64)
    start = start.astype(np.float64)
    total = start.copy()
    for place in sorted(set(order.tolist()), reverse=True):
        here = np.flatnonzero(order == place)
        features = here[is_source[here] >= 0]
        total[features] += influence[is_source[features]]
        # Products of a few rows at a time: an absolute value of the whole matrix would double the memory.
        for some in np.array_split(here, max(1, len(here) * weights.shape[1] // 2**24)):
            block = np.abs(weights[rows[some]])
            scale = np.maximum(block.sum(axis=1, dtype=np.float64) if sums is None else sums[rows[some]], 1e-10)
            influence += (total[some] / scale) @ block
    features = is_source >= 0
    if (influence[is_source[features]] != (total - start)[features]).any():
        raise UserError("an edge of the graph goes against the order of its layers")
    return influence, total


def node_influence(graph: AttributionGraph) -> Float[np.ndarray, " node"]:
    """The influence of each node on the logits. That of logits is 0."""
    influence, _ = _influence(graph, graph.weights)
    return np.concatenate([influence, np.zeros(len(graph.logit_tokens))])


def scores(graph: AttributionGraph) -> Scores:
    """The replacement score and the completeness score of a graph."""
    influence, total = _influence(graph, graph.weights)
    errors, tokens = graph.error_nodes, graph.token_nodes
    sums = np.maximum(np.abs(graph.weights).sum(axis=1, dtype=np.float64), 1e-10)
    share = np.abs(graph.weights[:, errors]).sum(axis=1, dtype=np.float64) / sums
    of_tokens, of_errors = influence[tokens].sum(), influence[errors].sum()
    # Errors and tokens have no incoming edges. As in circuit-tracer they count as complete.
    every = total.sum() + of_tokens + of_errors
    return Scores(
        _ratio(of_tokens, of_tokens + of_errors), _ratio(((1 - share) * total).sum() + of_tokens + of_errors, every)
    )


def prune(graph: AttributionGraph, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> Pruned:
    """Keep the nodes and edges of most influence.

    Nodes are kept in descending order of influence until they have `node_threshold` of all influence. Among them, edges
    are kept in descending order of (normalised weight) * (influence of the target) until they have `edge_threshold` of
    the sum. Features and errors without outgoing edges and features without incoming edges are then removed, until none
    are left. Tokens and logits stay.

    Args:
      graph: the graph.
      node_threshold: the share of influence that nodes keep, from 0 to 1.
      edge_threshold: the share that edges keep.
    """
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 <= value <= 1:
            raise UserError(f"{name}={value} must be from 0 to 1")
    influence = node_influence(graph)
    nodes = influence >= _threshold(influence, node_threshold)
    nodes[graph.token_nodes.start :] = True
    n, width = graph.n_features, graph.weights.shape[1]
    targets = np.r_[nodes[:n], np.ones(len(graph.logit_tokens), bool)]
    weights = np.where(targets[:, None] & nodes[None, :width], graph.weights, 0)
    _, total = _influence(graph, weights)
    sums = np.maximum(np.abs(weights).sum(axis=1, dtype=np.float64), 1e-10)
    importance = np.abs(weights) * (total / sums)[:, None]
    edges = (importance >= _threshold(importance.reshape(-1), edge_threshold)) & (importance > 0)
    inner = graph.token_nodes.start
    while True:
        before = nodes.copy()
        nodes[:inner] &= edges[:, :inner].any(axis=0)
        nodes[:n] &= edges[:n].any(axis=1)
        if (nodes == before).all():
            break
        edges[:n][~nodes[:n]] = False
        edges[:, ~nodes[:width]] = False
    return Pruned(graph, nodes, edges, _cumulative(influence), node_threshold, edge_threshold)


def _influence(graph: AttributionGraph, weights: Float[np.ndarray, "target source"]):
    n, logits = graph.n_features, len(graph.logit_tokens)
    columns = np.r_[np.arange(n), np.full(logits, -1)]
    order = np.r_[graph.layer, np.full(logits, graph.n_layers)].astype(np.int64)
    start = np.r_[np.zeros(n), graph.logit_probabilities]
    return influence_of_sources(weights, np.arange(n + logits), columns, order, start)


def _threshold(scores: Float[np.ndarray, " n"], share: float) -> float:
    """The least score that is needed to keep this share of the sum of the scores."""
    if share >= 1:  # a sum that is rounded reaches the whole before its last terms
        return 0.0
    descending = np.sort(scores)[::-1]
    cumulative = np.cumsum(descending, dtype=np.float64)
    if not cumulative[-1] > 0:
        return 0.0
    return float(descending[min(int(np.searchsorted(cumulative / cumulative[-1], share)), len(scores) - 1)])


def _cumulative(influence: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    order = np.argsort(-influence, kind="stable")
    sums = np.cumsum(influence[order])
    found = np.zeros_like(influence)
    found[order] = sums / sums[-1] if sums[-1] > 0 else sums
    return found


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
