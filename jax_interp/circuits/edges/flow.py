"""`FlowRoutes`: how much of what a target reads comes from each source (Ferrando & Voita 2024, arXiv:2403.00824)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.edges.input_gradients import order_of, rows_in_stretches
from jax_interp.circuits.edges.scores import METHODS, EdgeMethod
from jax_interp.circuits.graph import Graph
from jax_interp.circuits.stretches import Stretch, stretches
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations, values_at
from jax_interp.surgery.contract import Model


@METHODS.register
@dataclasses.dataclass(frozen=True)
class FlowRoutes(EdgeMethod):
    """Information-flow routes, as in EAP-IG: shares, not effects. They need the clean prompts only, and no metric.

    At each position the proximity of a source s to the input x of a target is max(0, |x|₁ - |x - s|₁). The score of an
    edge is its share of the proximities of all sources of the target, averaged over the real positions. Scores are at
    least 0, and those of one target sum to at most 1: a position where no source is close to the input counts as 0.
    Learned positions belong to the source "input"; in EAP-IG they belong to no source.
    """

    def scores(
        self, model: Model, contrast: Contrast, graph: Graph, ablated: Activations | None
    ) -> Float[Array, "prompt target source"]:
        if ablated is not None:
            raise UserError("information-flow routes read the clean run only: leave out ablated=")
        targets, sources = stretches(graph.targets), stretches(graph.sources)
        inputs = {} if contrast.mask is None else {"mask": contrast.mask}
        acts = values_at(model, *(s.address for s in (*targets, *sources)))(contrast.clean, **inputs)
        written = rows_in_stretches(graph.sources, acts)[jnp.asarray(order_of(graph.sources))]
        mask = jnp.ones(contrast.clean.shape, bool) if contrast.mask is None else contrast.mask
        real = mask.astype(written.dtype)
        scores = jnp.zeros((contrast.clean.shape[0], *graph.shape), written.dtype)
        for stretch in targets:
            found = _shares(graph, stretch, upcast(acts[stretch.address]), written, real)
            scores = scores.at[:, stretch.rows.reshape(-1)].set(jnp.moveaxis(found, 0, 1))
        return scores


def _shares(
    graph: Graph,
    stretch: Stretch,
    read: Float[Array, "layer prompt pos *node d_model"],
    written: Float[Array, "source prompt pos d_model"],
    real: Float[Array, "prompt pos"],
) -> Float[Array, "target prompt source"]:
    """The shares of all sources in each target of a stretch, one target at a time."""
    read = jnp.moveaxis(read, 3, 1) if stretch.axis else read[:, None]
    read = read.reshape(-1, *read.shape[2:])
    norm = lambda x: jnp.sum(jnp.abs(x), axis=-1)

    def of_target(x_and_exists: tuple[Array, Array]) -> Array:
        x, exists = x_and_exists
        near = jnp.maximum(norm(x)[None] - norm(x[None] - written), 0) * exists[:, None, None]
        total = jnp.sum(near, axis=0, keepdims=True)
        share = jnp.where(total > 0, near / jnp.where(total > 0, total, 1), 0) * real[None]
        return jnp.moveaxis(jnp.sum(share, axis=2) / jnp.sum(real, axis=1)[None], 0, 1)

    exists = jnp.asarray(graph.exists[stretch.rows.reshape(-1)], written.dtype)
    return jax.lax.map(of_target, (read, exists))
