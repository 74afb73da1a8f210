"""Arithmetic on k-sparse codes: `values [row, k]` at `indices [row, k]` stand for a dense `[row, feature]` matrix.

Three products are all that a k-sparse dictionary needs beyond its encoder's, and none of them touches the
dense code:

    sparse_matmul(values, indices, W)      z @ W                 the decoder
    sparse_dot(g, indices, W)              (g @ W.T) at indices  the gradient that reaches the code
    sparse_outer(values, indices, g, m)    z.T @ g               the gradient of a weight row per feature

`decode` is the first with the other two as its derivative. Within one row the indices must differ (a
top-k always gives that); entries whose value is 0 count as absent.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Rows handled at once by the gathering products. XLA's CPU backend writes the gathered [rows, k, d] block to memory
# before contracting it: a block must stay in cache, and a whole batch at once costs five times as much.
ROWS = 128
# `sparse_outer` on CPU works through features FEATURES at a time and through their entries ENTRIES at a time.
FEATURES, ENTRIES = 16, 128


def to_dense(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], n_features: int
) -> Float[Array, "row feature"]:
    """The dense code. Costs a zero-filled `[row, feature]` array: for display and editing, not for training."""
    rows = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], n_features), values.dtype).at[rows, indices].set(values, unique_indices=True)


def _by_rows(fn, *args):
    """`fn` over blocks of ROWS rows on CPU, over everything at once elsewhere (an accelerator fuses the gather)."""
    n = args[0].shape[0]

    def blocked(*args):
        padding = -n % ROWS
        padded = [jnp.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1)).reshape(-1, ROWS, *a.shape[1:]) for a in args]
        out = jax.lax.map(lambda block: fn(*block), tuple(padded))
        return out.reshape(-1, *out.shape[2:])[:n]

    if n <= ROWS:
        return fn(*args)
    return jax.lax.platform_dependent(*args, cpu=blocked, default=fn)


def _rows(W: Float[Array, "feature d"], indices: Int[Array, "row k"]) -> Float[Array, "row k d"]:
    return W.at[indices].get(mode="promise_in_bounds")


def sparse_matmul(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], W: Float[Array, "feature d"]
) -> Float[Array, "row d"]:
    """`z @ W`: 2·row·k·d operations instead of 2·row·feature·d."""
    return _by_rows(lambda v, i: jnp.einsum("nk,nkd->nd", v, _rows(W, i)), values, indices)


def sparse_dot(
    g: Float[Array, "row d"], indices: Int[Array, "row k"], W: Float[Array, "feature d"]
) -> Float[Array, "row k"]:
    """`g @ W.T` at the entries `indices` only."""
    return _by_rows(lambda g, i: jnp.einsum("nd,nkd->nk", g, _rows(W, i)), g, indices)


def sparse_outer(
    values: Float[Array, "row k"],
    indices: Int[Array, "row k"],
    g: Float[Array, "row d"],
    n_features: int,
    transpose: bool = False,
) -> Float[Array, "feature d"]:
    """`z.T @ g`, or with `transpose` `g.T @ z` ([d, feature]).

    Deterministic on every backend: CPU sorts the entries by feature and multiplies block by block; elsewhere the dense
    code is built and multiplied, because the matrix units are faster than scattered additions there and those would add
    in an order that changes from run to run.
    """

    def dense(values, indices, g):
        z = to_dense(values, indices, n_features)
        return g.T @ z if transpose else z.T @ g

    by_segments = partial(_outer_by_segments, n_features=n_features, transpose=transpose)
    return jax.lax.platform_dependent(values, indices, g, cpu=by_segments, default=dense)


def _sorted_entries(
    indices: Int[Array, "row k"], n_features: int
) -> tuple[Int[Array, " entry"], Int[Array, " entry"]]:
    """(features in ascending order, where each entry came from in the flattened `indices`), stable."""
    n = indices.size
    bits = max(n - 1, 1).bit_length()
    if n_features << bits <= 2**32:
        # One unsigned word holds feature and origin: sorting one operand is several times faster than sorting pairs.
        word = jnp.sort((indices.reshape(-1).astype(jnp.uint32) << bits) | jnp.arange(n, dtype=jnp.uint32))
        return (word >> bits).astype(jnp.int32), (word & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)
    origin = jnp.argsort(indices.reshape(-1))
    return indices.reshape(-1)[origin], origin


def _outer_by_segments(
    values: Float[Array, "row k"],
    indices: Int[Array, "row k"],
    g: Float[Array, "row d"],
    n_features: int,
    transpose: bool,
) -> Float[Array, "feature d"]:
    """Entries sorted by feature; for each block of FEATURES features, its entries ENTRIES at a time:
    out[block] += onehot(feature) * value @ g[row of entry]. No entry is dropped however unevenly features fire."""
    k, d = indices.shape[1], g.shape[1]
    features, origin = _sorted_entries(indices, n_features)
    n_blocks = -(-n_features // FEATURES)
    edges = jnp.searchsorted(features, FEATURES * jnp.arange(n_blocks + 1, dtype=jnp.int32)).astype(jnp.int32)
    # Padding belongs to no feature, so that the last slice of ENTRIES never runs off the end (a slice that does is
    # moved back by XLA, and entries would be counted twice).
    features = jnp.pad(features, (0, ENTRIES), constant_values=n_blocks * FEATURES)
    rows = jnp.pad(origin // k, (0, ENTRIES))
    values = jnp.pad(values.reshape(-1).at[origin].get(mode="promise_in_bounds"), (0, ENTRIES))

    def of_block(block, out):
        def add_entries(carry):
            start, total = carry
            local, row, value = (jax.lax.dynamic_slice(a, (start,), (ENTRIES,)) for a in (features, rows, values))
            hit = (local - block * FEATURES)[None, :] == jnp.arange(FEATURES, dtype=jnp.int32)[:, None]
            weight = jnp.where(hit, value[None, :], jnp.zeros((), value.dtype))
            return start + ENTRIES, total + weight @ g.at[row].get(mode="promise_in_bounds")

        none = jnp.zeros((FEATURES, d), g.dtype)
        _, total = jax.lax.while_loop(lambda carry: carry[0] < edges[block + 1], add_entries, (edges[block], none))
        if transpose:  # here, where the block is in cache: turning the whole result round costs as much as making it
            return jax.lax.dynamic_update_slice(out, total.T, (0, block * FEATURES))
        return jax.lax.dynamic_update_slice(out, total, (block * FEATURES, 0))

    shape = (d, n_blocks * FEATURES) if transpose else (n_blocks * FEATURES, d)
    out = jax.lax.fori_loop(0, n_blocks, of_block, jnp.zeros(shape, g.dtype))
    return out[:, :n_features] if transpose else out[:n_features]


@jax.custom_vjp
def decode(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], W_dec: Float[Array, "feature d"]
) -> Float[Array, "row d"]:
    """`z @ W_dec`, with gradients that only touch the k entries of each row."""
    return sparse_matmul(values, indices, W_dec)


def _decode_forward(values, indices, W_dec):
    return sparse_matmul(values, indices, W_dec), (values, indices, W_dec)


def _decode_backward(residuals, g):
    values, indices, W_dec = residuals
    return sparse_dot(g, indices, W_dec), None, sparse_outer(values, indices, g, W_dec.shape[0])


decode.defvjp(_decode_forward, _decode_backward)
