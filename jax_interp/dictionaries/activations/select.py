"""The k largest entries of each row, exactly, without sorting the row or touching most of it twice.

`jax.lax.top_k` on XLA's CPU backend costs by the length of the row. Here the row is cut into contiguous groups, the k
groups with the largest maxima are picked, and the top k are picked among *their* members. Nothing is lost: an entry of
the top k that lay outside those groups would have k larger group maxima above it. The groups are gathered in ascending
order, so ties too are broken as `lax.top_k` breaks them (lowest index first).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jax_interp.dictionaries.sharding import feature_shards, rows_spec

GROUP = 16
# A second pass over k·GROUP candidates pays where the row is at least this many times longer.
WORTHWHILE = 4
# Columns of a mask that are counted as the bits of one word.
WORD = 32


def top_k(x: Float[Array, "row feature"], k: int) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
    """(values in descending order, indices), equal to `jax.lax.top_k(x, k)` to the bit. `k` beyond the row's length
    raises ValueError."""
    n = x.shape[1]
    if not 0 < k <= n:
        raise ValueError(f"top_k: k = {k} of {n} features; k must be between 1 and the number of features")
    if (shards := feature_shards()) > 1 and n % shards == 0:
        return _by_shards(x, k, shards)
    # The barriers keep XLA's CPU backend from fusing what surrounds a top-k into it: fused with an elementwise
    # neighbour it can take some 60 times longer.
    x = jax.lax.optimization_barrier(x)
    if n % GROUP or n < WORTHWHILE * k * GROUP:
        values, indices = jax.lax.optimization_barrier(tuple(jax.lax.top_k(x, k)))
        return values, indices
    whole = lambda x: tuple(jax.lax.top_k(x, k))
    values, indices = jax.lax.platform_dependent(x, cpu=lambda x: _by_groups(x, k), default=whole)
    return values, indices


def _by_shards(x: Float[Array, "row feature"], k: int, shards: int) -> tuple[Array, Array]:
    """Of each device's own features the k largest, and of those the k largest: k · shards values a row travel. By hand,
    because the partitioner would bring whole rows together before any top-k."""
    width = x.shape[1] // shards

    def of_device(x):
        values, indices = jax.lax.top_k(x, min(k, width))
        indices = indices + jax.lax.axis_index("tensor").astype(indices.dtype) * width
        together = lambda a: jax.lax.all_gather(a, "tensor", axis=1, tiled=True)
        values, place = jax.lax.top_k(together(values), k)
        return values, jnp.take_along_axis(together(indices), place, axis=1, mode="promise_in_bounds")

    rows = rows_spec(x.shape[0])
    gathered = jax.shard_map(of_device, in_specs=P(rows, "tensor"), out_specs=(P(rows), P(rows)), check_vma=False)
    return gathered(x)


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


def batch_top_k(
    x: Float[Array, "row feature"], k: int, limit: Float[Array, ""] | None = None
) -> tuple[Float[Array, " entry"], Int[Array, " entry"], Int[Array, " entry"]]:
    """The k·rows largest entries of the whole of `x`, exactly, as (values, rows, features) in the order in which they
    stand in `x`. Among entries that equal the least chosen one the first are taken. With `limit`, a number up to k that
    may be traced, limit·rows of them, and then places left over: 0, in the row and the feature one past the end.

    Nothing is sorted, and `x` is read once: the n groups of GROUP neighbours with the largest maxima hold the n largest
    entries (see above), and n is 1/GROUP of `x` where k is small.
    """
    rows = x.shape[0]
    n = k * rows
    if limit is not None:
        wanted = jnp.clip(jnp.round(limit * rows), 1, n).astype(jnp.int32)
        chosen = _batch_top_k(x, n, wanted)
        real = jnp.arange(n, dtype=jnp.int32) < wanted
        fill = (jnp.zeros((), x.dtype), jnp.int32(rows), jnp.int32(x.shape[1]))
        values, of_row, feature = (jnp.where(real, a, a_fill) for a, a_fill in zip(chosen, fill))
        return values, of_row, feature
    return _batch_top_k(x, n, n)


def _batch_top_k(x: Float[Array, "row feature"], n: int, wanted: Any) -> tuple[Array, Array, Array]:
    """The `wanted` largest in `n` places; what is in the places after them means nothing."""
    rows, features = x.shape
    if rows * features < 2 * n * GROUP:
        chosen_rows, chosen_features, _ = _true_positions(_largest_mask(x, wanted), n)
        return x[chosen_rows, chosen_features], chosen_rows, chosen_features
    groups = -(-features // GROUP)
    # The last group filled up with what is never among the largest finite numbers.
    whole = jnp.pad(x, ((0, 0), (0, -features % GROUP)), constant_values=-jnp.inf)
    maxima = jax.lax.optimization_barrier(whole.reshape(rows, groups, GROUP).max(-1))
    of_row, group, _ = _true_positions(_largest_mask(maxima, n), n)
    members = whole.reshape(rows * groups, GROUP).at[of_row * groups + group].get(mode="promise_in_bounds")
    members = jax.lax.optimization_barrier(members)
    which, place, _ = _true_positions(_largest_mask(members, wanted), n)
    at = lambda a: a.at[which].get(mode="promise_in_bounds")
    values = members.at[which, place].get(mode="promise_in_bounds")
    return values, at(of_row), at(group) * GROUP + place


def first_true_positions(mask: Bool[Array, "row feature"], n: int) -> tuple[Int[Array, " entry"], Int[Array, " entry"]]:
    """(rows, features) of the first `n` that are True, in the order in which they stand in `mask`; places left over are
    one past the end. `mask` is read once."""
    row, feature, real = _true_positions(mask, n)
    return jnp.where(real, row, mask.shape[0]), jnp.where(real, feature, mask.shape[1])


def _largest_mask(x: Float[Array, "row column"], n: Any) -> Bool[Array, "row column"]:
    """Where the `n` largest are: exactly `n` of them, of equal ones the first."""
    least = nth_largest(x.reshape(-1), n)  # one long row: XLA's CPU backend counts short ones half as fast
    above, equal = x > least, x == least
    room = n - jnp.sum(above, dtype=jnp.int32)
    in_row = jnp.sum(equal, axis=1, dtype=jnp.int32)
    end = jnp.cumsum(in_row, dtype=jnp.int32)
    # Room ends within one row: no other has to be counted through.
    row, full = jnp.arange(len(x), dtype=jnp.int32), jnp.minimum(jnp.sum(end < room, dtype=jnp.int32), len(x) - 1)
    fits = jnp.cumsum(equal[full], dtype=jnp.int32) <= room - (end - in_row)[full]
    return above | (equal & ((row < full)[:, None] | ((row == full)[:, None] & fits[None, :])))


def nth_largest(x: Float[Array, "*place"], n: Any) -> Float[Array, ""]:
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


def _true_positions(
    mask: Bool[Array, "row column"], n: int
) -> tuple[Int[Array, " entry"], Int[Array, " entry"], Bool[Array, " entry"]]:
    """(row, column) of each of the first `n` that are True, in their order, and whether there is such a one: a place
    that is left over means nothing but stays inside.

    Counted through are words of WORD columns, one bit each; inside a word the place is found by counting its bits.
    """
    rows, columns = mask.shape
    bits = jnp.pad(mask, ((0, 0), (0, -columns % WORD))).reshape(rows, -1, WORD).astype(jnp.uint32)
    words = jnp.sum(bits << jnp.arange(WORD, dtype=jnp.uint32)[None, None, :], axis=2, dtype=jnp.uint32)
    per_row, words = words.shape[1], jax.lax.optimization_barrier(words.reshape(-1))
    count = jax.lax.population_count(words).astype(jnp.int32)
    end = jax.lax.optimization_barrier(jnp.cumsum(count, dtype=jnp.int32))
    entry = jnp.arange(n, dtype=jnp.int32)
    which = jnp.minimum(jnp.searchsorted(end, entry, side="right"), len(words) - 1).astype(jnp.int32)
    at = lambda a: a.at[which].get(mode="promise_in_bounds")
    rest, column = at(words), which % per_row * WORD
    before = entry - (at(end) - jax.lax.population_count(rest).astype(jnp.int32))  # so many of its word
    step = WORD // 2
    while step:  # the lower half of the bits is left out where it holds no more than come before
        lower = jax.lax.population_count(rest & jnp.uint32((1 << step) - 1)).astype(jnp.int32)
        further = lower <= before
        before = jnp.where(further, before - lower, before)
        rest = jnp.where(further, rest >> step, rest)
        column = jnp.where(further, column + step, column)
        step //= 2
    return which // per_row, jnp.minimum(column, columns - 1), entry < end[-1]
