"""Pre-activations, all of them or those that take part, and how their gradient reaches the encoder.

    pre = (x - centre) W_enc + b_enc

Where nobody asks for the gradient of x, as in training on harvested rows, that of the centre needs no product of
matrices; autodiff would make one with all of pre's gradient, a sixth of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.dictionaries.activations.select import first_true_positions
from jax_interp.dictionaries.codes import DenseCode, EntryCode
from jax_interp.dictionaries.sparse.products import entries_outer

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary

PreCode = TypeVar("PreCode", DenseCode, EntryCode)
ABSENT = -1e30  # the pre-activation of a place left over: off, and near no threshold


def dense_pre(dictionary: Dictionary, x: Float[Array, "row d"]) -> DenseCode:
    """A code whose values are its pre-activations, for an activation to decide on."""
    pre = dictionary.linear(x) + dictionary.b_enc[None, :]
    return DenseCode(pre, pre)


def dense_code_from_pre(
    pre: Float[Array, "row feature"], dictionary: Dictionary, x: Float[Array, "row d"]
) -> DenseCode:
    """`dense_pre` where `pre` has been computed, with its gradient. No forward-mode derivative."""
    x = x.astype(dictionary.W_enc.dtype)
    pre = _given(pre, x, dictionary.W_enc, dictionary.b_enc, dictionary.b_dec if dictionary.centred else None)
    return DenseCode(pre, pre)


def entry_code_from_pre(
    pre: Float[Array, "row feature"], takes_part: Bool[Array, "row feature"], n: int, dictionary: Dictionary, x: Array
) -> EntryCode:
    """The entries of `pre` that take part, at most `n` of them, with a gradient that touches nothing else."""
    rows, features = first_true_positions(takes_part, n)
    inside = pre.at[rows, features].get(mode="fill", fill_value=ABSENT)
    centre, x = dictionary.b_dec if dictionary.centred else None, x.astype(dictionary.W_enc.dtype)
    values: Any = _entries_given(inside, rows, features, x, dictionary.W_enc, dictionary.b_enc, centre)
    return EntryCode(values=values, rows=rows, features=features, n_rows=pre.shape[0], pre=values)


def subtract_centre(x: Float[Array, "row d"], centre: Float[Array, " d"] | None) -> Float[Array, "row d"]:
    return x if centre is None else x - centre[None, :]


def bias_gradient(
    g: Float[Array, "*entry"], rows: Int[Array, "*entry"], features: Int[Array, "*entry"], n_rows: int, n_features: int
) -> Float[Array, " feature"]:
    """The gradient of `b_enc` from that of entries, none of which is there twice; those of the feature one past the end
    take no part. Deterministic on every backend: off the CPU additions scattered onto few places would be made in an
    order that changes from run to run, so there the dense code is summed that `W_enc`'s gradient needs as well."""

    def scattered(g, rows, features):
        return jnp.zeros((n_features,), g.dtype).at[features].add(g, mode="drop")

    def dense(g, rows, features):
        return jnp.sum(jnp.zeros((n_rows, n_features), g.dtype).at[rows, features].add(g, mode="drop"), axis=0)

    return jax.lax.platform_dependent(g, rows, features, cpu=scattered, default=dense)


def centre_gradient(
    g_b_enc: Float[Array, " feature"], W_enc: Float[Array, "d feature"], centre: Float[Array, " d"] | None
) -> Float[Array, " d"] | None:
    """The gradient of the centre from that of `b_enc`: one product of a matrix with a vector, where autodiff of
    `x - centre` would multiply two matrices for it."""
    return None if centre is None else -(W_enc @ g_b_enc)


@jax.custom_vjp
def _given(pre, x, W_enc, b_enc, centre):
    return pre


def _given_forward(pre, x, W_enc, b_enc, centre):
    return pre, (x, W_enc, centre)


def _given_backward(residuals, g):
    x, W_enc, centre = residuals
    # Turned round before the product, which takes a CPU half as long: left to itself XLA reads x by columns.
    turned = jax.lax.optimization_barrier(subtract_centre(x, centre).T)
    g_b_enc = jnp.sum(g, axis=0)
    return None, g @ W_enc.T, turned @ g, g_b_enc, centre_gradient(g_b_enc, W_enc, centre)


_given.defvjp(_given_forward, _given_backward)


@jax.custom_vjp
def _entries_given(inside, rows, features, x, W_enc, b_enc, centre):
    return inside


def _entries_forward(inside, rows, features, x, W_enc, b_enc, centre):
    return inside, (rows, features, x, W_enc, centre)


def _entries_backward(residuals, g):
    rows, features, x, W_enc, centre = residuals
    n_features = W_enc.shape[1]
    g_b_enc = bias_gradient(g, rows, features, x.shape[0], n_features)
    g_W_enc = entries_outer(g, rows, features, subtract_centre(x, centre), n_features, transpose=True)
    z = jnp.zeros((x.shape[0], n_features), g.dtype).at[rows, features].add(g, mode="drop")
    g_x = z @ W_enc.T  # dropped where not asked for
    return None, None, None, g_x, g_W_enc, g_b_enc, centre_gradient(g_b_enc, W_enc, centre)


_entries_given.defvjp(_entries_forward, _entries_backward)
