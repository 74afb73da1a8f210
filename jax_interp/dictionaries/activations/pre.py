"""Pre-activations, and the gradients that flow from them to the encoder.

    pre = (x - centre) W_enc + b_enc

Training on harvested rows needs no gradient for x. The gradient for the centre is then a product of a matrix with a
vector. Autodiff would multiply two matrices instead, which takes a sixth of the time of a step.
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
ABSENT = -1e30  # the pre-activation of an unused place: the latent is off, and no threshold is near


def dense_pre(dictionary: Dictionary, x: Float[Array, "row d"]) -> DenseCode:
    """A code whose values are the pre-activations. `decide` of an activation then replaces the values."""
    pre = dictionary.linear(x) + dictionary.b_enc[None, :]
    return DenseCode(pre, pre)


def dense_code_from_pre(
    pre: Float[Array, "row feature"], dictionary: Dictionary, x: Float[Array, "row d"]
) -> DenseCode:
    """The code of `dense_pre` from pre-activations that are already computed. It has no forward-mode derivative."""
    x = x.astype(dictionary.W_enc.dtype)
    pre = _given(pre, x, dictionary.W_enc, dictionary.b_enc, dictionary.b_dec if dictionary.centred else None)
    return DenseCode(pre, pre)


def entry_code_from_pre(
    pre: Float[Array, "row feature"], takes_part: Bool[Array, "row feature"], n: int, dictionary: Dictionary, x: Array
) -> EntryCode:
    """A code of the entries of `pre` where `takes_part` is True, at most `n`. The gradient touches only these."""
    rows, features = first_true_positions(takes_part, n)
    inside = pre.at[rows, features].get(mode="fill", fill_value=ABSENT)
    centre, x = dictionary.b_dec if dictionary.centred else None, x.astype(dictionary.W_enc.dtype)
    values: Any = _entries_given(inside, rows, features, x, dictionary.W_enc, dictionary.b_enc, centre)
    return EntryCode(values=values, rows=rows, features=features, n_rows=pre.shape[0], pre=values)


def subtract_centre(x: Float[Array, "row d"], centre: Float[Array, " d"] | None) -> Float[Array, "row d"]:
    """Return `x - centre`, or `x` if `centre` is None."""
    return x if centre is None else x - centre[None, :]


def bias_gradient(
    g: Float[Array, "*entry"], rows: Int[Array, "*entry"], features: Int[Array, "*entry"], n_rows: int, n_features: int
) -> Float[Array, " feature"]:
    """The gradient for `b_enc`, from the gradient `g` for the entries of a code.

    The result is deterministic on every backend. On other devices than the CPU, the order of scattered additions would
    change from run to run. There, a dense array is summed instead; the gradient for `W_enc` needs it anyway.

    Args:
      g: the gradient for each entry.
      rows: the row of each entry. No two entries have the same row and feature.
      features: the feature of each entry. `n_features` marks an unused place.
      n_rows: number of rows.
      n_features: number of features.
    """

    def scattered(g, rows, features):
        return jnp.zeros((n_features,), g.dtype).at[features].add(g, mode="drop")

    def dense(g, rows, features):
        return jnp.sum(jnp.zeros((n_rows, n_features), g.dtype).at[rows, features].add(g, mode="drop"), axis=0)

    return jax.lax.platform_dependent(g, rows, features, cpu=scattered, default=dense)


def centre_gradient(
    g_b_enc: Float[Array, " feature"], W_enc: Float[Array, "d feature"], centre: Float[Array, " d"] | None
) -> Float[Array, " d"] | None:
    """The gradient for the centre, from the gradient for `b_enc`. It is a product of a matrix with a vector."""
    return None if centre is None else -(W_enc @ g_b_enc)


@jax.custom_vjp
def _given(pre, x, W_enc, b_enc, centre):
    return pre


def _given_forward(pre, x, W_enc, b_enc, centre):
    return pre, (x, W_enc, centre)


def _given_backward(residuals, g):
    x, W_enc, centre = residuals
    # x is transposed before the product, because XLA would otherwise read it by columns. This halves the time on a CPU.
    transposed = jax.lax.optimization_barrier(subtract_centre(x, centre).T)
    g_b_enc = jnp.sum(g, axis=0)
    return None, g @ W_enc.T, transposed @ g, g_b_enc, centre_gradient(g_b_enc, W_enc, centre)


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
    g_x = z @ W_enc.T  # XLA removes this if it is not used
    return None, None, None, g_x, g_W_enc, g_b_enc, centre_gradient(g_b_enc, W_enc, centre)


_entries_given.defvjp(_entries_forward, _entries_backward)
