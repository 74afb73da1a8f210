"""Edges: a score for every edge of a graph, from gradients, from exact patching, or from one forward pass."""

from jax_interp.circuits.edges.eap import EAP, EAPIG, CleanCorrupted, IGActivations
from jax_interp.circuits.edges.exact import ExactEdges
from jax_interp.circuits.edges.flow import FlowRoutes
from jax_interp.circuits.edges.scores import METHODS, EdgeMethod, EdgeScores, edge_scores

__all__ = [
    "EAP", "EAPIG", "METHODS", "CleanCorrupted", "EdgeMethod", "EdgeScores", "ExactEdges", "FlowRoutes",
    "IGActivations", "edge_scores",
]  # fmt: skip
