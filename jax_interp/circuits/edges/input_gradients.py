"""The gradient of the metric at the input of every target, and its product with the differences of the sources.

The score of an edge is Σ over positions and features of (ablated value - value) of the source, times the gradient at
the input of the target. So all edges need the gradients at the targets once, from one backward pass, and one product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.circuits.contrast import Contrast, inputs_of
from jax_interp.circuits.graph import Graph, Part
from jax_interp.circuits.stretches import stretches
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations, Add, Each, Edit, at, edit, read, sites
from jax_interp.surgery.contract import Model


def gradients_and_values(
    model: Model, contrast: Contrast, tokens: Int[Array, "prompt pos"], graph: Graph, *edits: Edit, values: bool = False
) -> tuple[dict[str, Array], Activations | None]:
    """(the gradient of the sum of the metric at each stretch of targets, the values of the sources), of one run.

    Args:
      model, contrast, graph: as in `edge_scores`.
      tokens: the tokens of the run.
      edits: edits of this run.
      values: whether to return the values of the sources.
    """
    targets = [stretch.address for stretch in stretches(graph.targets)]
    sources = [stretch.address for stretch in stretches(graph.sources)] if values else []
    inputs = inputs_of(model, contrast)
    kinds = sites(model)(tokens, **inputs)

    def metric(zeros: dict[str, Array]) -> tuple[Array, Activations | None]:
        run = edit(model, *edits, *(at(name, Each(Add(zero))) for name, zero in zeros.items()))
        out = read(run, *sources)(tokens, **inputs) if sources else run(tokens, **inputs)
        logits, acts = out if sources else (out, None)
        return jnp.sum(contrast.metric(logits)), acts

    zeros = {}
    for name, stretch in zip(targets, stretches(graph.targets), strict=True):
        kind = kinds[name.replace(f"{stretch.layers.start}:{stretch.layers.stop}", str(stretch.layers.start), 1)]
        zeros[name] = jnp.zeros((len(stretch.layers), *kind.shape), kind.dtype)
    return jax.grad(metric, has_aux=True)(zeros)


def products(
    graph: Graph, difference: Float[Array, "source prompt pos d_model"], gradients: dict[str, Array]
) -> Float[Array, "prompt target source"]:
    """Σ over positions and features of the difference of each source times the gradient at each target.

    `difference` is in the order of `differences`; the result is in the order of the graph.
    """
    rows = rows_in_stretches(graph.targets, gradients)
    found = jnp.einsum("tbpd,sbpd->bts", rows, difference.astype(rows.dtype))
    return found[:, order_of(graph.targets)][:, :, order_of(graph.sources)]


def differences(
    contrast: Contrast, graph: Graph, own: Activations, ablated: Activations
) -> Float[Array, "source prompt pos d_model"]:
    """ablated - own value of each source, stretch by stretch; 0 at padding."""
    difference = jax.tree.map(lambda other, value: upcast(other) - upcast(value), ablated, own)
    rows = rows_in_stretches(graph.sources, difference)
    if contrast.mask is None:
        return rows
    return jnp.where(contrast.mask[None, :, :, None], rows, jnp.zeros_like(rows))


def rows_in_stretches(
    parts: tuple[Part, ...], values: dict[str, Array] | Activations
) -> Float[Array, "node prompt pos d_model"]:
    """The value of each node, stretch by stretch, in float32 at least."""
    found = []
    for stretch in stretches(parts):
        value = upcast(values[stretch.address])  # [layer, prompt, pos, (node,) d_model]
        value = jnp.moveaxis(value, 3, 1) if stretch.axis else value[:, None]
        found.append(value.reshape(-1, *value.shape[2:]))
    return found[0] if len(found) == 1 else jnp.concatenate(found)


def order_of(parts: tuple[Part, ...]) -> Int[np.ndarray, " node"]:
    """For each node of a graph, its number in the order of the stretches."""
    return np.argsort(np.concatenate([stretch.rows.reshape(-1) for stretch in stretches(parts)]))
