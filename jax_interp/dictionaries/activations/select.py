"""Exact selection without sorting: the k largest entries of each row, or the k·B largest entries of a batch of B rows.

The time of `jax.lax.top_k` on XLA's CPU backend grows with the length of the row. Here a row is divided into groups of
neighbours. The k groups with the largest maxima are found, and then the k largest entries among their members. This is
exact: for an entry outside these groups, there are k group maxima that are at least as large. Groups are gathered in
ascending order, so that ties are broken as in `lax.top_k` (lowest index first).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jax_interp.dictionaries.sharding import feature_shards, rows_spec

GROUP = 16
# Groups are used if a row is at least this many times longer than its k·GROUP candidates.
WORTHWHILE = 4
# The number of columns of a mask that are packed into one word.
WORD = 32


def top_k(x: Float[Array, "row feature"], k: int) -> tuple[Float[Array, "row k"], Int[Array, "row k"]]:
    """The k largest entries of each row, equal to `jax.lax.top_k(x, k)` to the bit.

    Args:
      x: any numbers.
      k: from 1 to the number of features.

    Returns:
      (values in descending order, indices).

    Raises:
      ValueError: `k` is out of range.
    """
    n = x.shape[1]
    if not 0 < k <= n:
        raise ValueError(f"top_k: k = {k} of {n} features; k must be between 1 and the number of features")
    if jax.sharding.get_abstract_mesh().empty:
        return _on_one_device(x, k)
    return _by_shards(x, k, shards if n % (shards := feature_shards()) == 0 else 1)


def _on_one_device(x: Float[Array, "row feature"], k: int) -> tuple[Array, Array]:
    # The barriers keep XLA's CPU backend from fusing neighbouring operations into a top-k. A top-k that is fused with
    # an elementwise operation can take about 60 times longer. There is a barrier for each result, because one barrier
    # around both makes XLA's partitioner for CPUs abort the process (jax 0.10.2).
    n, barrier = x.shape[1], jax.lax.optimization_barrier
    x = barrier(x)
    if n % GROUP or n < WORTHWHILE * k * GROUP:
        values, indices = jax.lax.top_k(x, k)
        return barrier(values), barrier(indices)
    whole = lambda x: tuple(jax.lax.top_k(x, k))
    values, indices = jax.lax.platform_dependent(x, cpu=lambda x: _by_groups(x, k), default=whole)
    return values, indices


def _by_shards(x: Float[Array, "row feature"], k: int, shards: int) -> tuple[Array, Array]:
    """Each device finds the k largest of its own features in its own rows, and then the k largest of all candidates are
    found. Only k · shards values per row are communicated. The partitioner of XLA would gather whole rows."""
    width = x.shape[1] // shards

    def of_device(x):
        values, indices = _on_one_device(x, min(k, width))
        if shards == 1:
            return values, indices
        indices = indices + jax.lax.axis_index("tensor").astype(indices.dtype) * width
        together = lambda a: jax.lax.all_gather(a, "tensor", axis=1, tiled=True)
        values, place = jax.lax.top_k(together(values), k)
        return values, jnp.take_along_axis(together(indices), place, axis=1, mode="promise_in_bounds")

    rows = rows_spec(x.shape[0])
    spec = P(rows, "tensor" if shards > 1 else None)
    return jax.shard_map(of_device, in_specs=spec, out_specs=(P(rows), P(rows)), check_vma=False)(x)


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
    """The k·rows largest entries of the whole array `x`, exactly.

    Nothing is sorted, and `x` is read once: the n groups with the largest maxima contain the n largest entries.

    Args:
      x: any numbers.
      k: the number of entries per row, on average.
      limit: a number up to k that is used instead of k. It may be traced. Unused places then come last; their value is
        0, their row is the number of rows, and their feature is the number of features.

    Returns:
      (values, rows, features), sorted by row and then by feature. Among equal entries, the first ones are chosen.
    """
    rows = x.shape[0]
    n = k * rows
    wanted = n if limit is None else jnp.clip(jnp.round(limit * rows), 1, n).astype(jnp.int32)
    *chosen, real = _batch_top_k(x, n, wanted)
    fill = (jnp.zeros((), x.dtype), jnp.int32(rows), jnp.int32(x.shape[1]))
    values, of_row, feature = (jnp.where(real, a, a_fill) for a, a_fill in zip(chosen, fill))
    return values, of_row, feature


def _batch_top_k(x: Float[Array, "row feature"], n: int, wanted: int | Array) -> tuple[Array, Array, Array, Array]:
    """The `wanted` largest entries, in arrays of `n` places, and a mask of the places that are used.

    There can be one fewer than `wanted`. XLA may compute `x` twice, and where it rounds differently, the last entry
    does not reach itself.
    """
    rows, features = x.shape
    if rows * features < 2 * n * GROUP:
        chosen_rows, chosen_features, real = _true_positions(_largest_mask(x, wanted), n)
        return x[chosen_rows, chosen_features], chosen_rows, chosen_features, real
    groups = -(-features // GROUP)
    # The last group is padded with -inf, which is never among the largest finite numbers.
    whole = jnp.pad(x, ((0, 0), (0, -features % GROUP)), constant_values=-jnp.inf)
    maxima = jax.lax.optimization_barrier(whole.reshape(rows, groups, GROUP).max(-1))
    of_row, group, _ = _true_positions(_largest_mask(maxima, n), n)
    members = whole.reshape(rows * groups, GROUP).at[of_row * groups + group].get(mode="promise_in_bounds")
    members = jax.lax.optimization_barrier(members)
    which, place, real = _true_positions(_largest_mask(members, wanted), n)
    at = lambda a: a.at[which].get(mode="promise_in_bounds")
    values = members.at[which, place].get(mode="promise_in_bounds")
    return values, at(of_row), at(group) * GROUP + place, real


def first_true_positions(mask: Bool[Array, "row feature"], n: int) -> tuple[Int[Array, " entry"], Int[Array, " entry"]]:
    """(rows, features) of the first `n` True entries of `mask`, in order. Unused places hold the number of rows and the
    number of features. `mask` is read once."""
    row, feature, real = _true_positions(mask, n)
    return jnp.where(real, row, mask.shape[0]), jnp.where(real, feature, mask.shape[1])


def _largest_mask(x: Float[Array, "row column"], n: int | Array) -> Bool[Array, "row column"]:
    """A mask of exactly `n` entries, the largest ones. Among equal entries, the first ones are chosen."""
    least = nth_largest(x.reshape(-1), n)  # one long row, because XLA's CPU backend counts short rows half as fast
    above, equal = x > least, x == least
    remaining = n - jnp.sum(above, dtype=jnp.int32)  # places left for entries equal to `least`
    in_row = jnp.sum(equal, axis=1, dtype=jnp.int32)
    end = jnp.cumsum(in_row, dtype=jnp.int32)
    # The last place lies within one row. Only the entries of this row have to be counted.
    row, full = jnp.arange(len(x), dtype=jnp.int32), jnp.minimum(jnp.sum(end < remaining, dtype=jnp.int32), len(x) - 1)
    fits = jnp.cumsum(equal[full], dtype=jnp.int32) <= remaining - (end - in_row)[full]
    return above | (equal & ((row < full)[:, None] | ((row == full)[:, None] & fits[None, :])))


def nth_largest(x: Float[Array, "*place"], n: int | Array) -> Float[Array, ""]:
    """The n-th largest entry, found bit by bit.

    Floats are mapped to integers of the same order. 32 counts over `x` (64 for float64) find the largest integer that
    at least n entries reach. A sort takes ten times longer.
    """
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
    """(rows, columns) of the first `n` True entries, and a mask of the places that are used. Unused places hold
    arbitrary positions inside `mask`.

    WORD columns are packed into one word. The word of each entry is found first, then the bit inside the word.
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
    before = entry - (at(end) - jax.lax.population_count(rest).astype(jnp.int32))  # rank inside its word
    step = WORD // 2
    while step:  # skip the lower half of the bits if the entry is not in it
        lower = jax.lax.population_count(rest & jnp.uint32((1 << step) - 1)).astype(jnp.int32)
        further = lower <= before
        before = jnp.where(further, before - lower, before)
        rest = jnp.where(further, rest >> step, rest)
        column = jnp.where(further, column + step, column)
        step //= 2
    return which // per_row, jnp.minimum(column, columns - 1), entry < end[-1]
