"""Sources and targets of edges as functions that act in the backward pass only.

In the forward pass each returns its first argument. In the backward pass a target adds its encoder to the cotangent,
and a source multiplies the cotangent with what it writes. The product is the derivative by a coefficient of the source:
the weight of the edge.

The features of a prompt are packed in rows of one position each. A row is one matrix product with the cotangents of a
batch of targets, and the decoders of a few rows are gathered at a time.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.circuits.attribution_graphs.clean_run import ActiveFeatures
from jax_interp.core.pytrees import register_dataclass

SLOTS = 32
"""The number of features in one row of `Packed`: the rows of one matrix product."""
ROWS = 64
"""The number of rows of `Packed` whose decoders are gathered at once."""


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
    """Active features of one layer. Each row has up to `SLOTS` features of one position; free slots have activation 0.

    With an axis for the layer in front, the layers of a scanned model.
    """

    pos: Int[Array, " row"]
    feature: Int[Array, "row slot"]
    activation: Float[Array, "row slot"]


def pack(active: ActiveFeatures, layers: int, *, alike: bool) -> tuple[tuple[Packed, ...], Int[Array, " active"]]:
    """Active features in rows of one position each. `alike`: all layers get the same number of rows."""
    n = len(active)
    group = active.layer.astype(np.int64) * (int(active.pos.max(initial=0)) + 1) + active.pos
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])[: n or 0]
    within = np.arange(n) - np.repeat(starts, np.diff(np.r_[starts, n]))
    slot, first = within % SLOTS, within % SLOTS == 0
    row = np.cumsum(first) - 1  # over all layers
    row_layer, row_pos = active.layer[first], active.pos[first]
    counts = np.bincount(row_layer, minlength=layers) if n else np.zeros(layers, int)
    sizes = np.full(layers, max(counts.max(initial=0), 1)) if alike else np.maximum(counts, 1)
    begins, offsets = np.r_[0, np.cumsum(counts)], np.r_[0, np.cumsum(sizes)]
    place = (offsets[active.layer] + row - begins[active.layer]) * SLOTS + slot
    pos, feature = np.zeros(offsets[-1], np.int32), np.zeros(offsets[-1] * SLOTS, np.int32)
    activation = np.zeros(offsets[-1] * SLOTS, active.activation.dtype)
    pos[offsets[row_layer] + np.arange(len(row_layer)) - begins[row_layer]] = row_pos
    feature[place], activation[place] = active.feature, active.activation
    packed = []
    for layer in range(layers):
        rows = slice(offsets[layer], offsets[layer + 1])
        packed.append(
            Packed(
                jnp.asarray(pos[rows]),
                jnp.asarray(feature.reshape(-1, SLOTS)[rows]),
                jnp.asarray(activation.reshape(-1, SLOTS)[rows]),
            )
        )
    return tuple(packed), jnp.asarray(place)


@jax.custom_vjp
def target_at(x: Array, W_enc: Array, here: Array, pos: Array, feature: Array) -> Array:
    """`x`. In the backward pass, the encoder of a feature is added to the cotangent at one position, if `here`."""
    return x


def _target_backward(residuals: tuple[Array, ...], g: Array) -> tuple[Any, ...]:
    W_enc, here, pos, feature = residuals
    column = jnp.where(here, W_enc[:, feature], jnp.zeros((), W_enc.dtype))
    return g.at[0, pos].add(column.astype(g.dtype).reshape(g.shape[2:])), None, None, None, None


target_at.defvjp(lambda x, *rest: (x, rest), _target_backward)


@jax.custom_vjp
def linked(y: Array, x: Array) -> Array:
    """`y`, with a cotangent of zeros for `x`.

    Without a skip nothing differentiable reads `x`. JAX would then leave out the backward pass of `target_at`.
    """
    return y


linked.defvjp(lambda y, x: (y, jnp.zeros_like(x)), lambda zeros, g: (g, zeros))


@jax.custom_vjp
def feature_source(y: Array, alpha: Array, packed: Packed, W_dec: Array) -> Array:
    """`y`, as if alpha * activation * decoder were added for each feature, at alpha = 0."""
    return y


def _feature_source_forward(y: Array, alpha: Array, packed: Packed, W_dec: Array):
    return y, (alpha, packed, W_dec)


def _feature_source_backward(residuals: tuple[Array, Packed, Array], g: Array) -> tuple[Any, ...]:
    alpha, packed, W_dec = residuals
    rows = g[0].reshape(g.shape[1], -1).astype(alpha.dtype)

    def weights(row: Packed) -> Float[Array, " slot"]:
        decoders = W_dec[row.feature].astype(alpha.dtype)
        return row.activation.astype(alpha.dtype) * (decoders @ rows[row.pos])

    return g, jax.lax.map(weights, packed, batch_size=min(ROWS, packed.pos.shape[0])), None, None


feature_source.defvjp(_feature_source_forward, _feature_source_backward)


@jax.custom_vjp
def error_source(y: Array, alpha: Array, errors: Array) -> Array:
    """`y`, as if alpha * error were added at each position, at alpha = 0."""
    return y


def _error_source_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Any, ...]:
    alpha, errors = residuals
    rows = g[0].reshape(g.shape[1], -1).astype(alpha.dtype)
    return g, jnp.sum(rows * errors.astype(alpha.dtype), axis=-1), None


error_source.defvjp(lambda y, alpha, errors: (y, (alpha, errors)), _error_source_backward)


@jax.custom_vjp
def token_source(x: Array, alpha: Array) -> Array:
    """`x`, as if alpha * x were added at each position, at alpha = 0."""
    return x


def _token_source_backward(residuals: tuple[Array, Array], g: Array) -> tuple[Any, ...]:
    x, alpha = residuals
    return g, jnp.sum(g[0].astype(alpha.dtype) * x[0].astype(alpha.dtype), axis=-1)


token_source.defvjp(lambda x, alpha: (x, (x, alpha)), _token_source_backward)
