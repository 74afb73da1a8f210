"""Circuits: which parts of a model carry a behaviour."""

from jax_interp.circuits.atp_star import AtPStar
from jax_interp.circuits.attribution import Attribution, attribute
from jax_interp.circuits.attribution_check import AttributionWarning
from jax_interp.circuits.attribution_methods import Gradient, IntegratedGradients
from jax_interp.circuits.circuit_run import (
    circuit_logits,
    circuit_metric,
    circuit_metrics,
    circuit_model,
    source_values,
)
from jax_interp.circuits.contrast import Contrast, Direction, baseline, make_contrast, measure, normalised
from jax_interp.circuits.graph import Circuit, Graph, Part, residual_graph
from jax_interp.circuits.metrics import KL, LogitDifference, LogitMargin, LogProbability, Metric, ProbabilityDifference
from jax_interp.circuits.nodes import Nodes, make_nodes, node_effects, node_metric, resampled, swapped
from jax_interp.circuits.sweeps import ablate, dataset_means, patch, steer, sweep

__all__ = [
    "KL",
    "AtPStar",
    "Attribution",
    "AttributionWarning",
    "Circuit",
    "Contrast",
    "Direction",
    "Gradient",
    "Graph",
    "IntegratedGradients",
    "LogProbability",
    "LogitDifference",
    "LogitMargin",
    "Metric",
    "Nodes",
    "Part",
    "ProbabilityDifference",
    "ablate",
    "attribute",
    "baseline",
    "circuit_logits",
    "circuit_metric",
    "circuit_metrics",
    "circuit_model",
    "dataset_means",
    "make_contrast",
    "make_nodes",
    "measure",
    "node_effects",
    "node_metric",
    "normalised",
    "patch",
    "resampled",
    "residual_graph",
    "source_values",
    "steer",
    "swapped",
    "sweep",
]
