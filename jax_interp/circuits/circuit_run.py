"""Run a circuit: the model, in which each edge outside the circuit carries an ablated value.

The input of a target in this run is the input it would have in this run without ablation, plus

    Σ over sources s of  (1 - edge[target, s]) · (ablated value of s - value of s in this run)

With the values of the corrupted run as ablated values, the full graph gives the clean logits and the empty graph gives
the corrupted logits. This is the circuit evaluation of EAP-IG (Hanna et al. 2024, arXiv:2403.17806). It is one forward
pass: the differences of the sources so far travel through the layers as a carried value.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.circuits.contrast import Contrast, inputs_of
from jax_interp.circuits.graph import Circuit, Graph, as_circuit
from jax_interp.circuits.stretches import Stretch, stretches
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Activations, Each, Edit, ScopedEdit, Site, Tapped, at, edit, values_at
from jax_interp.surgery.contract import Model
from jax_interp.surgery.taps import static

_SOURCES = "circuit: ablated value - value, of each source so far"


def source_values(
    model: Model, graph: Graph, tokens: Int[Array, "prompt pos"], mask: Bool[Array, "prompt pos"] | None = None
) -> Activations:
    """The value of each source of a graph, with a layer axis: what edges outside a circuit can carry.

    Any pytree of this structure can be the ablated values of a circuit: that of other prompts (counterfactual,
    resampled), a mean over prompts that is broadcast to all rows, or zeros (`jax.tree.map(jnp.zeros_like, values)`).
    """
    inputs = {} if mask is None else {"mask": mask}
    return values_at(model, *(stretch.address for stretch in stretches(graph.sources)))(tokens, **inputs)


def circuit_metric(
    model: Model, contrast: Contrast, circuit: Circuit, ablated: Activations | None = None
) -> Float[Array, " prompt"]:
    """The metric of each clean prompt when only the edges of a circuit carry the values of this run.

    It is pure: jit, vmap over circuits, and grad with respect to `circuit.edges` work.

    Args:
      model: a model that has the values of the graph, under surgery or not.
      contrast: the prompts and the metric.
      circuit: the edges that are kept.
      ablated: what the other edges carry (see `source_values`). None: the values of the corrupted prompts.

    Returns:
      The metric of each prompt.

    Example:
        sizes = jnp.array([20, 200, 2000])
        circuits = jax.vmap(lambda n: Circuit.largest(graph, scores, n))(sizes)
        jax.vmap(lambda circuit: circuit_metric(model, contrast, circuit))(circuits)     # [size, prompt]
    """
    return contrast.metric(circuit_logits(model, contrast, circuit, ablated))


def circuit_logits(
    model: Model, contrast: Contrast, circuit: Circuit, ablated: Activations | None = None
) -> Float[Array, "prompt pos vocab"]:
    """The logits of the run of `circuit_metric`: only those of the last position if the metric reads no others."""
    graph = as_circuit(circuit).graph
    if ablated is None:
        ablated = source_values(model, graph, contrast.corrupted, contrast.mask)
    run = circuit_model(model, circuit, ablated, source_values(model, input_of(graph), contrast.clean, contrast.mask))
    return run(contrast.clean, **inputs_of(model, contrast))


def input_of(graph: Graph) -> Graph:
    """The graph of the first source alone, whose value no edge changes."""
    return Graph(graph.sources[:1], graph.targets[-1:])


def circuit_model(model: Model, circuit: Circuit, ablated: Activations, embedded: Activations) -> Tapped:
    """The model as a circuit: call it with the tokens of this run.

    Args:
      model: the model.
      circuit: the edges that are kept.
      ablated: the value of each source that the other edges carry, as `source_values` returns them.
      embedded: the value of the first source in this run: `source_values(model, input_of(graph), tokens)`.

    Returns:
      An edited model. It can be read, edited and differentiated like any other.
    """
    graph, removed = as_circuit(circuit).graph, circuit.removed
    times = [part.time for part in graph.sources for _ in part.names]
    first, *later = stretches(graph.sources)
    edits = [at("embed", _Begin(_difference(ablated[first.address][0], embedded[first.address][0]), len(times)))]
    for stretch in later:
        edits.append(_at(stretch, _Record(ablated[stretch.address], jnp.asarray(stretch.rows[:, 0]), stretch.axis)))
    targets = [part.time for part in graph.targets for _ in part.names]
    for stretch in stretches(graph.targets):
        known = tuple(sum(time < targets[rows[0]] for time in times) for rows in stretch.rows.tolist())
        rows = stretch.take(removed)
        rows = rows if stretch.axis else rows[:, 0]
        edits.append(_at(stretch, _Mix(rows, stretch.axis, known, stretch.layers.start)))
    return edit(model, *edits)


def _at(stretch: Stretch, fn: ScopedEdit) -> Edit:
    made = at(stretch.address, Each(fn))
    assert isinstance(made, Edit)
    return made


def _difference(ablated: Array, value: Array) -> Array:
    dtype = upcast(value).dtype
    return jnp.broadcast_to(ablated, value.shape).astype(dtype) - value.astype(dtype)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Begin(ScopedEdit):
    """Make the carried value: a row for each source, in the order of the graph. Rows of later sources are zeros."""

    first: Float[Array, "prompt pos d_model"]
    n_sources: int = static()

    def __call__(self, x: Array, site: Site) -> Array:
        if self.first.shape != x.shape:
            raise UserError(f"the circuit was made for prompts of shape {self.first.shape[:-1]}, got {x.shape[:-1]}")
        site.carry(_SOURCES, jnp.pad(self.first[None], ((0, self.n_sources - 1), *((0, 0),) * x.ndim)))
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Record(ScopedEdit):
    """Write the differences of the sources of one layer into their rows. The value itself stays as it is."""

    ablated: Float[Array, "..."]
    row: Int[Array, ""]
    axis: str | None = static()

    def __call__(self, x: Array, site: Site) -> Array:
        difference = _difference(self.ablated, x)
        axis = 0 if self.axis is None else site.axes.index(self.axis)
        difference = difference[None] if self.axis is None else jnp.moveaxis(difference, axis, 0)
        rows = jax.lax.dynamic_update_slice_in_dim(site.carried(_SOURCES), difference, self.row, 0)
        site.carry(_SOURCES, rows)
        return x


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Mix(ScopedEdit):
    """Add to the input of each target the differences of the sources that are removed for it.

    Args:
      removed: the weights, [source] or [node, source], possibly with a last axis of positions.
      axis: the axis of the targets.
      known: for each layer, how many sources come before the target.
      start: the first layer of `known`.
    """

    removed: Float[Array, "*node source *pos"]
    axis: str | None = static()
    known: tuple[int, ...] = static()
    start: int = static()

    def __call__(self, x: Array, site: Site) -> Array:
        rows, node = site.carried(_SOURCES), "n" if self.axis else ""
        removed = self.removed.astype(rows.dtype)
        if isinstance(site.layer, int):  # in a scanned block one program serves all layers, so all rows are used
            before = self.known[site.layer - self.start]
            rows = rows[:before]
            removed = removed[:, :before] if self.axis else removed[:before]
        pos = "p" if removed.ndim > (2 if self.axis else 1) else ""
        added = jnp.einsum(f"{node}s{pos},sbpd->bp{node}d", removed, rows)
        return (upcast(x).astype(rows.dtype) + added).astype(x.dtype)


def circuit_metrics(
    model: Model,
    contrast: Contrast,
    circuits: Circuit,
    ablated: Activations | None = None,
    *,
    prompts_at_once: int | None = None,
    circuits_at_once: int = 1,
) -> Float[Array, "circuit prompt"]:
    """`circuit_metric` of many circuits, with bounded memory.

    A run keeps the differences of all sources: 4 · sources · positions · d_model bytes for each prompt and circuit that
    run at once (0.5 MB for each position in GPT-2 small).

    Args:
      model, contrast, ablated: as in `circuit_metric`.
      circuits: circuits with a leading axis.
      prompts_at_once: the number of prompts that run together. None: all.
      circuits_at_once: the number of circuits that run together.

    Returns:
      The metric of each prompt in each circuit.
    """
    n = contrast.clean.shape[0]
    size = n if prompts_at_once is None else min(prompts_at_once, n)
    if size < 1 or circuits_at_once < 1:
        raise UserError("prompts_at_once and circuits_at_once are at least 1")

    def some(index: Int[Array, " row"]) -> Float[Array, "circuit row"]:
        rows = contrast.rows(index)
        graph = as_circuit(circuits).graph
        if ablated is None:
            other = source_values(model, graph, rows.corrupted, rows.mask)
        else:
            other = jax.tree.map(lambda leaf: leaf[:, index] if leaf.shape[1] == n else leaf, ablated)
        one = lambda circuit: circuit_metric(model, rows, circuit, other)
        return jax.lax.map(one, circuits, batch_size=circuits_at_once)

    return over_prompts(some, n, size, axis=1)


def over_prompts(fn: Any, n: int, size: int, axis: int = 0) -> Any:
    """`fn(index)` for groups of `size` of the prompts 0 to n - 1, one group at a time, joined along `axis`."""
    if size >= n:
        return fn(jnp.arange(n))
    groups = -(-n // size)
    index = jnp.minimum(jnp.arange(groups * size), n - 1).reshape(groups, size)  # the last prompt fills the last group
    found = jax.lax.map(fn, index)

    def join(leaf: Array) -> Array:
        leaf = jnp.moveaxis(leaf, 0, axis)
        joined = leaf.reshape(*leaf.shape[:axis], groups * size, *leaf.shape[axis + 2 :])
        return jax.lax.slice_in_dim(joined, 0, n, axis=axis)

    return jax.tree.map(join, found)
