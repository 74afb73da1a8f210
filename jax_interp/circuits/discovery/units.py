"""`Units`: the parts that a circuit is chosen from, as one flat list. Every method of this folder works on it.

A circuit is a vector `keep` with one entry for each unit: 1 where the unit has its own value, 0 where it has the value
of the corrupted run. `EdgeUnits` has the edges of a graph, `NodeUnits` has named values in any basis: heads, neurons,
features of a dictionary, components of a decomposed matrix.

    units = EdgeUnits(residual_graph(model))
    run_circuits(model, contrast, units, keep)        keep [circuit, unit] -> metric [circuit, prompt]
"""

from __future__ import annotations

import abc
import dataclasses
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.circuit_run import circuit_metric, over_prompts, source_values
from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.graph import Circuit, Graph
from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host
from jax_interp.surgery.contract import Model

TOKENS_AT_ONCE = 2048
"""How many tokens of all circuits are in flight, if the caller gives no number. It bounds the memory."""

Ablation = Literal["corrupted", "zero"]
"""What a unit has that is not in the circuit: its value in the corrupted run, or 0."""


class Units(abc.ABC):
    """What a circuit is chosen from. Instances are static: they can be compared and hashed."""

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """The name of each unit, in the order of the forward pass. Methods that remove units begin at the end."""

    @abc.abstractmethod
    def ablated(self, model: Model, contrast: Contrast) -> Any:
        """The values of units that are not in the circuit."""

    @abc.abstractmethod
    def metric(
        self, model: Model, contrast: Contrast, keep: Float[Array, " unit"], ablated: Any
    ) -> Float[Array, " prompt"]:
        """The metric of each prompt when the model runs with a circuit. It can be traced.

        Args:
          model: the model.
          contrast: the prompts and the metric.
          keep: the circuit.
          ablated: what `ablated(model, contrast)` returned for these prompts.
        """

    def used(self, keep: Float[Array, " unit"], unit: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether a unit can have an effect in this circuit. False only if it certainly has none."""
        return jnp.ones((), bool)

    def pruned(self, keep: Bool[np.ndarray, "*circuits unit"]) -> Bool[np.ndarray, "*circuits unit"]:
        """The circuits without the units that have no effect in them."""
        return np.asarray(keep, bool)

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class EdgeUnits(Units):
    """The edges of a graph, target by target, and source by source within a target.

    Args:
      graph: the graph.
      ablation: what edges outside the circuit carry.
    """

    graph: Graph
    ablation: Ablation = "corrupted"

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.graph.edge_names())

    @cached_property
    def places(self) -> tuple[Int[np.ndarray, " unit"], Int[np.ndarray, " unit"]]:
        """(the row of its target, the column of its source) of each edge."""
        targets, sources = np.nonzero(self.graph.exists)
        return targets, sources

    @cached_property
    def inputs(self) -> Bool[np.ndarray, "target source"]:
        """Whether a target is an input of the node that a source is the output of: `a1.h2<q>` is one of `a1.h2`.

        With grouped heads, a key or value input belongs to all heads of its group. The logits are an input of none.
        """
        found = np.zeros(self.graph.shape, bool)
        columns = {name: i for i, name in enumerate(self.graph.source_names)}
        heads_of = {part.address.rpartition(".attn.")[0]: part.names for part in self.graph.sources}
        row = 0
        for part in self.graph.targets:
            heads = heads_of.get(part.address.rpartition(".")[0], ()) if part.axis == "kv_head" else ()
            for i, name in enumerate(part.names):
                group = len(heads) // len(part.names)
                readers = heads[i * group : (i + 1) * group] if heads else (name.partition("<")[0],)
                found[row, [columns[reader] for reader in readers if reader in columns]] = True
                row += 1
        return found

    def flat(self, matrix: Float[np.ndarray | Array, "*circuits target source"]) -> Float[np.ndarray, "*circuits unit"]:
        """The entries of a matrix that are edges. Raises `UserError` if the shape is not [..., target, source]."""
        matrix = np.asarray(matrix)
        if matrix.shape[-2:] != self.graph.shape:
            raise UserError(f"edges have the shape [target, source] = {self.graph.shape}, these have {matrix.shape}")
        return matrix[(..., *self.places)]

    def matrix(self, flat: Float[np.ndarray, "*circuits unit"]) -> Float[np.ndarray, "*circuits target source"]:
        """The inverse of `flat`. Where there is no edge the entry is 0 (or False)."""
        flat = np.asarray(flat)
        found = np.zeros((*flat.shape[:-1], *self.graph.shape), flat.dtype)
        found[(..., *self.places)] = flat
        return found

    def circuit(self, keep: Float[np.ndarray | Array, " unit"]) -> Circuit:
        """The circuit of a flat vector. It can be traced."""
        keep = jnp.asarray(keep)
        return Circuit(jnp.zeros(self.graph.shape, keep.dtype).at[self.places].set(keep), self.graph)

    def ablated(self, model: Model, contrast: Contrast) -> Any:
        values = source_values(model, self.graph, contrast.corrupted, contrast.mask)
        return values if _checked(self.ablation) == "corrupted" else jax.tree.map(jnp.zeros_like, values)

    def metric(
        self, model: Model, contrast: Contrast, keep: Float[Array, " unit"], ablated: Any
    ) -> Float[Array, " prompt"]:
        return circuit_metric(model, contrast, self.circuit(keep), ablated)

    def used(self, keep: Float[Array, " unit"], unit: Int[Array, ""]) -> Bool[Array, ""]:
        reads = jnp.asarray(self.inputs)[jnp.asarray(self.places[0])[unit]]
        return ~jnp.any(reads) | jnp.any((keep != 0) & reads[jnp.asarray(self.places[1])])

    def pruned(self, keep: Bool[np.ndarray, "*circuits unit"]) -> Bool[np.ndarray, "*circuits unit"]:
        """The edges that lie on a path from the input to the logits (`Graph.prune` of EAP-IG).

        With corrupted values, the other edges change nothing. If the target has no path to the logits, nobody reads it.
        If no path leads from the input to the source, the source computes its corrupted value from corrupted inputs.
        """
        edges = self.matrix(np.asarray(keep, bool))
        inputs = self.inputs
        roots, leaves = ~np.any(inputs, axis=0), ~np.any(inputs, axis=1)
        while True:
            entered = np.any(np.any(edges, axis=-1)[..., None] & inputs, axis=-2) | roots
            alive = np.any(edges, axis=-2) & entered
            read = np.any(alive[..., None, :] & inputs, axis=-1) | leaves
            left = edges & alive[..., None, :] & read[..., :, None]
            if (left == edges).all():
                return self.flat(edges)
            edges = left


def run_circuits(
    model: Model,
    contrast: Contrast,
    units: Units,
    keep: Float[np.ndarray | Array, "circuit unit"],
    *,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> Float[np.ndarray, "circuit prompt"]:
    """The metric of each prompt under many circuits, in one compiled program.

    Args:
      model: the model.
      contrast: the prompts and the metric.
      units: what the circuits are chosen from.
      keep: one circuit a row. The entries are in [0, 1].
      tokens_at_once: how many tokens run together. Prompts and circuits are run in groups of about this size.

    Raises:
      UserError: the circuits do not fit the units.
    """
    keep = jnp.asarray(keep)
    if keep.ndim != 2 or keep.shape[1] != len(units) or not len(keep):
        raise UserError(f"circuits have the shape [circuit, unit] with {len(units)} units; these have {keep.shape}")
    keep = keep if jnp.issubdtype(keep.dtype, jnp.floating) else keep.astype(jnp.float32)
    prompts, length = contrast.clean.shape
    some = max(1, min(prompts, tokens_at_once // length))
    many = max(1, min(len(keep), tokens_at_once // (some * length)))
    return on_host(_run(model, contrast, keep, units=units, prompts=some, circuits=many))


@partial(jax.jit, static_argnames=("units", "prompts", "circuits"))
def _run(model: Model, contrast: Contrast, keep: Array, *, units: Units, prompts: int, circuits: int) -> Array:
    def some(index: Int[Array, " row"]) -> Float[Array, "circuit row"]:
        rows = contrast.rows(index)
        ablated = units.ablated(model, rows)
        return jax.lax.map(lambda one: units.metric(model, rows, one, ablated), keep, batch_size=circuits)

    return over_prompts(some, contrast.clean.shape[0], prompts, axis=1)


def _checked(ablation: str) -> Ablation:
    if ablation not in ("corrupted", "zero"):
        raise UserError(f"ablation={ablation!r}: choose corrupted (the values of the corrupted prompts) or zero")
    return ablation
