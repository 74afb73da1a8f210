"""`NodeUnits`: circuits of named values in any basis. All methods of this folder that need no edges take them."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.discovery.units import Ablation, EdgeUnits, Units
from jax_interp.circuits.nodes import Nodes, node_metric, other_values
from jax_interp.surgery.contract import Model


@dataclasses.dataclass(frozen=True)
class NodeUnits(Units):
    """The units of `Nodes`: heads, neurons, features of a dictionary, components of a decomposed matrix.

    A unit in the circuit has the value that follows from its inputs in this run; another one has its ablated value.
    This is not the edge semantics: a node reads all other nodes, and what is no unit is recomputed.

    Args:
      nodes: the units, from `make_nodes`.
      ablation: what units outside the circuit have.
    """

    nodes: Nodes
    ablation: Ablation = "corrupted"

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.nodes.names())

    def ablated(self, model: Model, contrast: Contrast) -> Any:
        return other_values(model, contrast, self.nodes, self.ablation)

    def metric(
        self, model: Model, contrast: Contrast, keep: Float[Array, " unit"], ablated: Any
    ) -> Float[Array, " prompt"]:
        return node_metric(model, contrast, self.nodes, keep, other=ablated)


def edges_of_nodes(units: EdgeUnits, keep: Bool[np.ndarray, " source"]) -> Bool[np.ndarray, " unit"]:
    """The edges between kept nodes: the circuit of MIB's node level. The logits are always kept.

    Args:
      units: the edges.
      keep: whether each source of the graph is kept.
    """
    kept = np.asarray(keep, bool)
    targets, sources = units.places
    read = np.any(units.inputs & kept, axis=1) | ~np.any(units.inputs, axis=1)
    return kept[sources] & read[targets]
