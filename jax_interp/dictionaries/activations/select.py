"""The k largest entries of each row, exactly, without sorting the row or touching most of it twice.

`jax.lax.top_k` on XLA's CPU backend costs by the length of the row. Here the row is cut into contiguous groups, the k
groups with the largest maxima are picked, and the top k are picked among *their* members. Nothing is lost: an entry of
the top k that lay outside those groups would have k larger group maxima above it. The groups are gathered in ascending
order, so ties too are broken as `lax.top_k` breaks them (lowest index first).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

GROUP = 16
# A second pass over k·GROUP candidates pays where the row is at least this many times longer.
WORTHWHILE = 4


def top_k(x: Float[Array, "row feature"], k: int) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
    """(values in descending order, indices), equal to `jax.lax.top_k(x, k)` to the bit. `k` beyond the row's length
    raises ValueError."""
    n = x.shape[1]
    if not 0 < k <= n:
        raise ValueError(f"top_k: k = {k} of {n} features; k must be between 1 and the number of features")
    # The barriers keep XLA's CPU backend from fusing what surrounds a top-k into it: fused with an elementwise
    # neighbour it can take some 60 times longer.
    x = jax.lax.optimization_barrier(x)
    if n % GROUP or n < WORTHWHILE * k * GROUP:
        values, indices = jax.lax.optimization_barrier(tuple(jax.lax.top_k(x, k)))
        return values, indices
    whole = lambda x: tuple(jax.lax.top_k(x, k))
    values, indices = jax.lax.platform_dependent(x, cpu=lambda x: _by_groups(x, k), default=whole)
    return values, indices


def _by_groups(x: Float[Array, "row feature"], k: int) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
    rows, n = x.shape
    n_groups = n // GROUP
    largest = jax.lax.optimization_barrier(x.reshape(rows, n_groups, GROUP).max(-1))
    groups = jnp.sort(jax.lax.top_k(largest, k)[1], axis=-1)
    flat = jnp.arange(rows, dtype=groups.dtype)[:, None] * n_groups + groups
    members = x.reshape(rows * n_groups, GROUP).at[flat.reshape(-1)].get(mode="promise_in_bounds")
    members = jax.lax.optimization_barrier(members.reshape(rows, k * GROUP))
    values, place = jax.lax.top_k(members, k)
    indices = jnp.take_along_axis(groups, place // GROUP, axis=1, mode="promise_in_bounds") * GROUP + place % GROUP
    return jax.lax.optimization_barrier((values, indices))


# Candidates a row for the choice over the whole batch, per latent that a row has on average.
CANDIDATES = 4


def batch_top_k(
    x: Float[Array, "row feature"], k: int
) -> tuple[Float[Array, " entry"], Int[Array, " entry"], Int[Array, " entry"]]:
    """The k·rows largest entries of the whole of `x` as (values, rows, features), exactly; rows ascend. Among entries
    that equal the least chosen one those of lower rows come first.

    The k·CANDIDATES largest of each row are found first, and the choice is among those. Where that may have cut a row
    short (its candidates are all chosen) the choice is made again over all of `x`, so the result is exact.
    """
    rows, n = x.shape
    width = min(k * CANDIDATES, n)
    candidates, features = top_k(x, width)
    count = _chosen_of_sorted_rows(candidates, k * rows)
    chosen = _entries(candidates, features, count, k * rows)
    if width == n:
        return chosen

    def over_all(x):
        order_values, order = top_k(x, n)
        return _entries(order_values, order, _chosen_of_sorted_rows(order_values, k * rows), k * rows)

    return jax.lax.cond(jnp.max(count) == width, over_all, lambda x: chosen, x)


def _chosen_of_sorted_rows(x: Float[Array, "row candidate"], n: int) -> Int[Array, " row"]:
    """How many of each row, whose entries descend, are among the `n` largest of all; they sum to `n`."""
    least = _nth_largest(x, n)
    above = jnp.sum(x > least, axis=1, dtype=jnp.int32)
    equal = jnp.sum(x == least, axis=1, dtype=jnp.int32)
    room = n - jnp.sum(above, dtype=jnp.int32)
    before = jnp.cumsum(equal, dtype=jnp.int32) - equal
    return above + jnp.clip(room - before, 0, equal)


def _nth_largest(x: Float[Array, "row candidate"], n: int) -> Float[Array, ""]:
    """The n-th largest entry, bit by bit: of the integers in the order of the floats, the largest that n entries
    reach. 32 counts over `x` (64 for float64), each as fast as memory, where a sort of it takes ten times longer."""
    bits = x.dtype.itemsize * 8
    unsigned = jnp.dtype(f"uint{bits}")
    top = jnp.asarray(1 << (bits - 1), unsigned)
    word = jax.lax.bitcast_convert_type(x, unsigned)
    key = jax.lax.optimization_barrier(jnp.where(word & top != 0, ~word, word | top))

    def bit(i, found):
        trial = found | (top >> i.astype(unsigned))
        return jnp.where(jnp.sum(key >= trial, dtype=jnp.int32) >= n, trial, found)

    found = jax.lax.fori_loop(0, bits, bit, jnp.zeros((), unsigned))
    return jax.lax.bitcast_convert_type(jnp.where(found & top != 0, found ^ top, ~found), x.dtype)


def _entries(
    values: Float[Array, "row candidate"], features: Int[Array, "row candidate"], count: Int[Array, " row"], n: int
) -> tuple[Float[Array, " entry"], Int[Array, " entry"], Int[Array, " entry"]]:
    """The first `count` of each row, one row after the other."""
    end = jnp.cumsum(count, dtype=jnp.int32)
    entry = jnp.arange(n, dtype=jnp.int32)
    rows = jnp.searchsorted(end, entry, side="right").astype(jnp.int32)
    place = entry - (end - count)[rows]
    at = lambda a: a.at[rows, place].get(mode="promise_in_bounds")
    return at(values), rows, at(features)
