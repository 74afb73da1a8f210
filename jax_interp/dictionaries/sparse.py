"""Arithmetic on k-sparse codes: `values [row, k]` at `indices [row, k]` stand for a dense `[row, feature]` matrix.

Three products are all that a k-sparse dictionary needs beyond its encoder's, and none of them touches the
dense code:

    sparse_matmul(values, indices, W)      z @ W                 the decoder
    sparse_dot(g, indices, W)              (g @ W.T) at indices  the gradient that reaches the code
    sparse_outer(values, indices, g, m)    z.T @ g               the gradient of a weight row per feature

`decode` is the first with the other two as its derivative. Within one row the indices must differ (a
top-k always gives that); entries whose value is 0 count as absent. Where rows have different numbers of latents
(BatchTopK) the code is a list of entries (value, row, feature), and `decode_entries` is the decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Terms added up in one fused loop. XLA's CPU backend turns `acc + w * W[i]` into a vectorised loop over rows and d, in
# parallel, four times as fast as a gathered [rows, k, d] block contracted in cache; more terms at once only make the
# loop slower to compile.
TERMS = 8
# `sparse_outer` on CPU adds the entries of a feature BRANCHING at a time.
BRANCHING = 16
# `sparse_dot` on CPU gathers [ROWS, k, d] at a time: a block must stay in cache.
ROWS = 128
ENTRIES = 4096  # ... and so must a block of single entries
# Elsewhere what is gathered at a time has at most so many numbers: 64 latents of 8192 rows are 2 · 10⁹ at d 4096.
GATHERED = 2**26
# Features whose gradients are turned from rows into columns at a time.
BLOCK = 64


def to_dense(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], n_features: int
) -> Float[Array, "row feature"]:
    """The dense code. Costs a zero-filled `[row, feature]` array: for display and editing, not for training."""
    rows = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], n_features), values.dtype).at[rows, indices].set(values, unique_indices=True)


def sparse_matmul(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], W: Float[Array, "feature d"]
) -> Float[Array, "row d"]:
    """`z @ W`: 2·row·k·d operations instead of 2·row·feature·d."""

    def gathered(values, indices, W):
        of_rows = lambda v, i: jnp.einsum("nk,nkd->nd", v, W.at[i].get(mode="promise_in_bounds"))
        return _by_blocks(of_rows, _at_a_time(indices.shape[1] * W.shape[1], len(values)), values, indices)

    return jax.lax.platform_dependent(values, indices, W, cpu=_sum_of_rows, default=gathered)


def _at_a_time(numbers: int, rows: int) -> int:
    """How many of `rows` rows, each of which gathers so many numbers, to take at a time. On a mesh all: what a device
    has of them cannot be told here, and cutting an axis that devices share would bring it together."""
    return max(GATHERED // numbers, 1) if jax.sharding.get_abstract_mesh().empty else rows


def _by_blocks(of_rows: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """`of_rows(*arrays)`, `size` rows at a time."""
    n = len(arrays[0])
    if size >= n:
        return of_rows(*arrays)
    pad = lambda a: jnp.pad(a, ((0, -n % size), *[(0, 0)] * (a.ndim - 1)))
    out = jax.lax.map(lambda block: of_rows(*block), tuple(pad(a).reshape(-1, size, *a.shape[1:]) for a in arrays))
    return out.reshape(-1, *out.shape[2:])[:n]


def _sum_of_rows(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], W: Float[Array, "feature d"]
) -> Float[Array, "row d"]:
    # Without the barriers XLA would compute what it gathers from anew for each of the terms, and the sums anew for each
    # of their uses.
    values, indices, W = jax.lax.optimization_barrier((values, indices, W))
    total = jnp.zeros((values.shape[0], W.shape[1]), W.dtype)
    for j in range(values.shape[1]):
        total = total + values[:, j, None] * W.at[indices[:, j]].get(mode="promise_in_bounds")
        if j % TERMS == TERMS - 1 or j == values.shape[1] - 1:
            total = jax.lax.optimization_barrier(total)
    return total


def sparse_dot(
    g: Float[Array, "row d"], indices: Int[Array, "row k"], W: Float[Array, "feature d"]
) -> Float[Array, "row k"]:
    """`g @ W.T` at the entries `indices` only."""

    def gathered(size, g, indices, W):
        of_rows = lambda g, i: jnp.einsum("nd,nkd->nk", g, W.at[i].get(mode="promise_in_bounds"))
        return _by_blocks(of_rows, size, g, indices)

    elsewhere = _at_a_time(indices.shape[1] * W.shape[1], len(g))
    return jax.lax.platform_dependent(g, indices, W, cpu=partial(gathered, ROWS), default=partial(gathered, elsewhere))


def sparse_outer(
    values: Float[Array, "row k"],
    indices: Int[Array, "row k"],
    g: Float[Array, "row d"],
    n_features: int,
    transpose: bool = False,
) -> Float[Array, "feature d"]:
    """`z.T @ g`, or with `transpose` `g.T @ z` ([d, feature]).

    Deterministic on every backend: CPU sorts the entries by feature and adds each feature's in a tree; elsewhere the
    dense code is built and multiplied, because the matrix units are faster than scattered additions there and those
    would add in an order that changes from run to run.
    """

    def dense(values, indices, g):
        z = to_dense(values, indices, n_features)
        return g.T @ z if transpose else z.T @ g

    def by_trees(values, indices, g):
        out = _outer_by_trees(values, indices, g, n_features)
        return _transposed(out) if transpose else out

    return jax.lax.platform_dependent(values, indices, g, cpu=by_trees, default=dense)


def _outer_by_trees(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], g: Float[Array, "row d"], n_features: int
) -> Float[Array, "feature d"]:
    features, origin = _sorted_entries(indices.reshape(-1), n_features)
    values = values.reshape(-1).at[origin].get(mode="promise_in_bounds")
    return _sums_by_target(values, origin // indices.shape[1], features, g, n_features)


def _sums_by_target(
    values: Float[Array, " entry"],
    source: Int[Array, " entry"],
    target: Int[Array, " entry"],
    rows: Float[Array, "n d"],
    n_targets: int,
) -> Float[Array, "target d"]:
    """Row t of the result is Σ values[e] rows[source[e]] over the entries whose target is t; `target` ascends.

    Sums of up to BRANCHING entries are `sparse_matmul`s again; a target with more entries gets several partial sums,
    which are summed in the same way until every target has at most BRANCHING left. Shapes do not depend on how
    unevenly entries are spread, only the number of rounds does (its logarithm)."""
    edges = jnp.searchsorted(target, jnp.arange(n_targets + 1, dtype=jnp.int32)).astype(jnp.int32)
    branch = jnp.arange(BRANCHING, dtype=jnp.int32)[None, :]
    n_partial = n_targets + target.size // BRANCHING  # one unfilled sum a target, at the most

    def grouped(first, count):
        """How the sums of each target's items, BRANCHING at a time, are laid out one after the other:
        (where each target's sums begin, how many they are, the items of each sum, which of those are real)."""
        sums = -(-count // BRANCHING)
        end = jnp.cumsum(sums, dtype=jnp.int32)
        place = jnp.arange(n_partial, dtype=jnp.int32)
        owner = jnp.minimum(jnp.searchsorted(end, place, side="right"), n_targets - 1)
        begin = end - sums
        item = (first[owner] + (place - begin[owner]) * BRANCHING)[:, None] + branch
        real = (item < (first + count)[owner][:, None]) & (place < end[-1])[:, None]
        return begin, sums, jnp.where(real, item, 0), real

    first, count, item, real = grouped(edges[:-1], edges[1:] - edges[:-1])
    partial_sums = _sum_of_rows(jnp.where(real, values[item], jnp.zeros((), values.dtype)), source[item], rows)

    def add_up(carry):
        first, count, rows = carry
        first, count, item, real = grouped(first, count)
        return first, count, _sum_of_rows(real.astype(rows.dtype), item, rows)

    carry = (first, count, partial_sums)
    first, count, rows = jax.lax.while_loop(lambda carry: jnp.max(carry[1]) > BRANCHING, add_up, carry)
    real = branch < count[:, None]
    return _sum_of_rows(real.astype(rows.dtype), jnp.where(real, first[:, None] + branch, 0), rows)


def _transposed(rows: Float[Array, "feature d"]) -> Float[Array, "d feature"]:
    """`rows.T`, turned round block by block: asked for a transpose, XLA would have the sums above write their results
    with a stride, several times slower than the sums themselves."""
    n, d = rows.shape
    rows = jnp.pad(rows, ((0, -n % BLOCK), (0, 0)))

    def turn(block, out):
        part = jax.lax.dynamic_slice(rows, (block * BLOCK, 0), (BLOCK, d))
        return jax.lax.dynamic_update_slice(out, part.T, (0, block * BLOCK))

    out = jax.lax.fori_loop(0, len(rows) // BLOCK, turn, jnp.zeros((d, len(rows)), rows.dtype))[:, :n]
    return jax.lax.optimization_barrier(out)


def _sorted_entries(
    features: Int[Array, " entry"], n_features: int
) -> tuple[Int[Array, " entry"], Int[Array, " entry"]]:
    """(features in ascending order, where each entry came from), stable."""
    n = features.size
    bits = max(n - 1, 1).bit_length()
    if n_features << bits <= 2**32:
        # One unsigned word holds feature and origin: sorting one operand is several times faster than sorting pairs.
        word = jnp.sort((features.astype(jnp.uint32) << bits) | jnp.arange(n, dtype=jnp.uint32))
        return (word >> bits).astype(jnp.int32), (word & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)
    origin = jnp.argsort(features)
    return features[origin], origin


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


def entries_dot(
    g: Float[Array, "row d"], rows: Int[Array, " entry"], features: Int[Array, " entry"], W: Float[Array, "feature d"]
) -> Float[Array, " entry"]:
    """`g @ W.T` at the entries only. Of an entry one past the end the answer means nothing."""
    rows, features = jnp.minimum(rows, len(g) - 1), jnp.minimum(features, len(W) - 1)
    dots = lambda rows, features: jnp.sum(g[rows] * W.at[features].get(mode="promise_in_bounds"), axis=1)
    gathered = lambda size, rows, features: _by_blocks(dots, size, rows, features)
    elsewhere = _at_a_time(W.shape[1], len(rows))
    return jax.lax.platform_dependent(
        rows, features, cpu=partial(gathered, ENTRIES), default=partial(gathered, elsewhere)
    )


def entries_outer(
    values: Float[Array, " entry"],
    rows: Int[Array, " entry"],
    features: Int[Array, " entry"],
    g: Float[Array, "row d"],
    n_features: int,
    transpose: bool = False,
) -> Float[Array, "feature d"]:
    """`z.T @ g` for a code given by its entries, or with `transpose` `g.T @ z`. Deterministic, as `sparse_outer` is.
    Entries of the feature one past the end take no part."""

    def dense(values, rows, features, g):
        z = jnp.zeros((g.shape[0], n_features), values.dtype).at[rows, features].add(values, mode="drop")
        return g.T @ z if transpose else z.T @ g

    def by_trees(values, rows, features, g):
        features, origin = _sorted_entries(features, n_features + 1)
        take = lambda a: a.at[origin].get(mode="promise_in_bounds")
        out = _sums_by_target(take(values), take(rows), features, g, n_features)
        return _transposed(out) if transpose else out

    return jax.lax.platform_dependent(values, rows, features, g, cpu=by_trees, default=dense)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def decode_entries(
    values: Float[Array, " entry"],
    rows: Int[Array, " entry"],
    features: Int[Array, " entry"],
    W_dec: Float[Array, "feature d"],
    n_rows: int,
) -> Float[Array, "row d"]:
    """`z @ W_dec` for entries in ascending order of rows, with gradients that touch nothing but the entries. Entries in
    the row one past the end take no part."""

    def dense(values, rows, features, W):
        return jnp.zeros((n_rows, W.shape[0]), values.dtype).at[rows, features].add(values, mode="drop") @ W

    def by_trees(values, rows, features, W):
        return _sums_by_target(values, features, rows, W, n_rows)

    return jax.lax.platform_dependent(values, rows, features, W_dec, cpu=by_trees, default=dense)


def _decode_entries_forward(values, rows, features, W_dec, n_rows):
    return decode_entries(values, rows, features, W_dec, n_rows), (values, rows, features, W_dec)


def _decode_entries_backward(n_rows, residuals, g):
    values, rows, features, W_dec = residuals
    outer = entries_outer(values, rows, features, g, W_dec.shape[0])
    return entries_dot(g, rows, features, W_dec), None, None, outer


decode_entries.defvjp(_decode_entries_forward, _decode_entries_backward)
