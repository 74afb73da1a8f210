"""`ExactEdges`: ablate every edge by itself and measure the metric. Nothing is estimated.

An edge changes the input of one target, so nothing before the layer of the target changes. The model is resumed at this
layer (`surgery.resumed`), with many edges as rows of one batch, and the loop over batches is one compiled program.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.circuits.circuit_run import circuit_metric, source_values
from jax_interp.circuits.contrast import Contrast, inputs_of, measure
from jax_interp.circuits.edges.input_gradients import differences, order_of
from jax_interp.circuits.edges.scores import METHODS, EdgeMethod
from jax_interp.circuits.graph import Circuit, Graph
from jax_interp.circuits.stretches import Stretch, stretches
from jax_interp.core.errors import UserError
from jax_interp.surgery import Activations, Add, Address, Edit, at, block_inputs, edit, resumed, values_at
from jax_interp.surgery.contract import Model


@METHODS.register
@dataclasses.dataclass(frozen=True)
class ExactEdges(EdgeMethod):
    """The metric with one edge ablated, minus the clean metric, for every edge.

    Args:
      rows_at_once: the number of rows (edges times prompts) that run together, which bounds the memory. At least one
        edge with all prompts of the group runs.
    """

    rows_at_once: int = 256

    def __post_init__(self):
        if not isinstance(self.rows_at_once, int) or isinstance(self.rows_at_once, bool) or self.rows_at_once < 1:
            raise UserError(f"rows_at_once={self.rows_at_once!r} must be an integer, at least 1")

    def scores(
        self, model: Model, contrast: Contrast, graph: Graph, ablated: Activations | None
    ) -> Float[Array, "prompt target source"]:
        own = source_values(model, graph, contrast.clean, contrast.mask)
        other = source_values(model, graph, contrast.corrupted, contrast.mask) if ablated is None else ablated
        together = max(1, self.rows_at_once // contrast.clean.shape[0])
        if not _can_resume(model, contrast):
            return _by_circuits(model, contrast, graph, other, together)
        difference = differences(contrast, graph, own, other)[jnp.asarray(order_of(graph.sources))]
        logits, streams = block_inputs(model)(contrast.clean, **inputs_of(model, contrast))
        last = graph.targets[-1].address  # the input of the last norm
        inputs = {} if contrast.mask is None else {"mask": contrast.mask}
        streams = jnp.concatenate([streams, values_at(model, last)(contrast.clean, **inputs)[last][None]])
        clean = contrast.metric(logits)
        scores = jnp.zeros((contrast.clean.shape[0], *graph.shape), clean.dtype)
        for stretch in stretches(graph.targets):
            jobs = _jobs(graph, stretch, together)
            ran = _Ablations(model, contrast, stretch, streams, difference)
            found = jax.lax.map(ran.metric, tuple(jnp.asarray(jobs[name]) for name in ("layer", "node", "sources")))
            found = jnp.moveaxis(found.reshape(-1, clean.shape[0]), 0, 1) - clean[:, None]
            rows = np.repeat(jobs["row"], jobs["sources"].shape[1])
            scores = scores.at[:, rows, jobs["sources"].reshape(-1)].set(found)
        return scores


@dataclasses.dataclass(frozen=True)
class _Ablations:
    """Runs in which some edges to one target are ablated, one edge in each run."""

    model: Model
    contrast: Contrast
    stretch: Stretch
    streams: Float[Array, "block prompt pos d_model"]
    difference: Float[Array, "source prompt pos d_model"]

    def metric(self, job: tuple[Int[Array, ""], Int[Array, ""], Int[Array, " edge"]]) -> Float[Array, "edge prompt"]:
        """The metric with the edge from each of some sources to one target ablated."""
        layer, node, sources = job
        n, several = self.contrast.clean.shape[0], sources.shape[0]
        rows = self.contrast.rows(jnp.tile(jnp.arange(n), several))
        added = self.difference[sources].reshape(-1, *self.difference.shape[2:])
        tile = lambda stream: jnp.tile(stream, (several, 1, 1))
        name = Address.parse(self.stretch.address).name
        if name == "resid_post":  # what a block returns: no block of this layer reads it
            stream = tile(self.streams[layer + 1])
            run = resumed(self.model, layer + 1, stream + added.astype(stream.dtype))
        else:
            place = {"head": node} if self.stretch.axis else {}
            cut = at(f"blocks.{name}", Add(added[:, :, None] if self.stretch.axis else added), layer=layer, **place)
            assert isinstance(cut, Edit)
            run = edit(resumed(self.model, layer, tile(self.streams[layer])), cut)
        return measure(run, rows.clean, rows).reshape(several, n)


def _jobs(graph: Graph, stretch: Stretch, together: int) -> dict[str, np.ndarray]:
    """The batches of edges to the targets of a stretch: the layer, the node, the row of the target, and the sources.

    The last batch of a target is filled up with its last source.
    """
    layers, nodes, rows, sources = [], [], [], []
    for layer, targets in zip(stretch.layers, stretch.rows.tolist(), strict=True):
        for node, row in enumerate(targets):
            exist = np.flatnonzero(graph.exists[row])
            for first in range(0, len(exist), together):
                some = exist[first : first + together]
                layers.append(layer)
                nodes.append(node)
                rows.append(row)
                sources.append(np.concatenate([some, np.full(together - len(some), some[-1])]))
    as_index = lambda values: np.asarray(values, np.int32)
    return {
        "layer": as_index(layers),
        "node": as_index(nodes),
        "row": as_index(rows),
        "sources": as_index(sources).reshape(len(rows), together),
    }


def _can_resume(model: Model, contrast: Contrast) -> bool:
    """Whether the model runs its blocks by `run_blocks`, and no edit carries a value from block to block."""

    def look(tokens: Array, layer: Array) -> Array:
        _, streams = block_inputs(model)(tokens, **inputs_of(model, contrast))
        return measure(resumed(model, layer, streams[layer]), tokens, contrast)

    try:
        jax.eval_shape(look, contrast.clean, jax.ShapeDtypeStruct((), jnp.int32))
    except UserError:
        return False
    return True


def _by_circuits(
    model: Model, contrast: Contrast, graph: Graph, ablated: Activations, together: int
) -> Float[Array, "prompt target source"]:
    """The same scores from whole runs of circuits that lack one edge, for models that cannot be resumed."""
    places = np.argwhere(graph.exists).astype(np.int32)
    full = jnp.asarray(graph.exists)

    def without(place: Int[Array, "2"]) -> Float[Array, " prompt"]:
        return circuit_metric(model, contrast, Circuit(full.at[place[0], place[1]].set(False), graph), ablated)

    found = jax.lax.map(without, jnp.asarray(places), batch_size=together)
    clean = measure(model, contrast.clean, contrast)
    scores = jnp.zeros((clean.shape[0], *graph.shape), clean.dtype)
    return scores.at[:, places[:, 0], places[:, 1]].set(jnp.moveaxis(found, 0, 1) - clean[:, None])
