"""Sums of weighted rows by target (segment sums), the building blocks of products.py. All are deterministic.

gathered_row_sum      for targets that have k entries each                                CPU
segment_sum           for targets with any number of entries, which are sorted by target   CPU
segment_sum_on_gpu    the same as segment_sum                                             NVIDIA GPUs (kernels.py)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The number of terms that one fused loop adds. XLA's CPU backend turns `acc + w * W[i]` into a vectorised, parallel
# loop over rows and d. This is four times as fast as contracting a gathered [rows, k, d] block in cache. More terms per
# loop only take longer to compile.
UNROLLED_TERMS = 8
# With more terms than this, a `fori_loop` goes over groups of terms. 256 unrolled terms take seconds to compile and do
# not run faster.
MAX_UNROLLED_TERMS = 16
# `segment_sum` adds at most BRANCHING entries of a target at a time.
BRANCHING = 16
# `block_transpose` transposes this many rows at a time.
TRANSPOSE_BLOCK = 64


def gathered_row_sum(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], W: Float[Array, "feature d"]
) -> Float[Array, "row d"]:
    """Row r of the result is Σ_j values[r, j] W[indices[r, j]]. This is fast on XLA's CPU backend."""
    # Without the barriers, XLA would recompute the gathered arrays for each term, and the sums for each use.
    values, indices, W = jax.lax.optimization_barrier((values, indices, W))
    total, k = jnp.zeros((values.shape[0], W.shape[1]), W.dtype), values.shape[1]

    def added(total, values, indices):
        for j in range(values.shape[1]):
            total = total + values[:, j, None] * W.at[indices[:, j]].get(mode="promise_in_bounds")
        return jax.lax.optimization_barrier(total)

    def group(i, total):
        part = lambda a: jax.lax.dynamic_slice_in_dim(a, i * UNROLLED_TERMS, UNROLLED_TERMS, axis=1)
        return added(total, part(values), part(indices))

    looped = k // UNROLLED_TERMS if k > MAX_UNROLLED_TERMS else 0
    if looped:
        total = jax.lax.fori_loop(0, looped, group, total)
    for begin in range(looped * UNROLLED_TERMS, k, UNROLLED_TERMS):
        total = added(total, values[:, begin : begin + UNROLLED_TERMS], indices[:, begin : begin + UNROLLED_TERMS])
    return total


def segment_sum(
    values: Float[Array, " entry"],
    source: Int[Array, " entry"],
    target: Int[Array, " entry"],
    rows: Float[Array, "n d"],
    n_targets: int,
) -> Float[Array, "target d"]:
    """Row t of the result is Σ values[e] rows[source[e]] over the entries whose target is t.

    `gathered_row_sum` adds up to BRANCHING entries. A target with more entries gets several partial sums. These are
    summed in the same way, until every target has at most BRANCHING partial sums left. Shapes do not depend on how
    entries are distributed over targets. The number of rounds is logarithmic in the largest number of entries.

    Args:
      values: the weight of each entry.
      source: the row that each entry adds.
      target: the target of each entry, in ascending order.
      rows: the rows that are summed.
      n_targets: the number of targets.
    """
    ends = segment_offsets(target, n_targets)
    branch = jnp.arange(BRANCHING, dtype=jnp.int32)[None, :]
    n_partial = n_targets + target.size // BRANCHING  # each target has at most one partial sum that is not full

    def grouped(first, count):
        """The layout of partial sums of BRANCHING items each: (index of the first sum of each target, number of sums of
        each target, items of each sum, mask of the items that exist)."""
        sums = -(-count // BRANCHING)
        end = jnp.cumsum(sums, dtype=jnp.int32)
        place = jnp.arange(n_partial, dtype=jnp.int32)
        owner = jnp.minimum(jnp.searchsorted(end, place, side="right"), n_targets - 1)
        begin = end - sums
        item = (first[owner] + (place - begin[owner]) * BRANCHING)[:, None] + branch
        real = (item < (first + count)[owner][:, None]) & (place < end[-1])[:, None]
        return begin, sums, jnp.where(real, item, 0), real

    first, count, item, real = grouped(ends[:-1], ends[1:] - ends[:-1])
    partial_sums = gathered_row_sum(jnp.where(real, values[item], jnp.zeros((), values.dtype)), source[item], rows)

    def add_up(carry):
        first, count, rows = carry
        first, count, item, real = grouped(first, count)
        return first, count, gathered_row_sum(real.astype(rows.dtype), item, rows)

    carry = (first, count, partial_sums)
    first, count, rows = jax.lax.while_loop(lambda carry: jnp.max(carry[1]) > BRANCHING, add_up, carry)
    real = branch < count[:, None]
    return gathered_row_sum(real.astype(rows.dtype), jnp.where(real, first[:, None] + branch, 0), rows)


def segment_sum_on_gpu(
    values: Float[Array, " entry"],
    source: Int[Array, " entry"],
    target: Int[Array, " entry"],
    rows: Float[Array, "n d"],
    n_targets: int,
) -> Float[Array, "target d"]:
    """`segment_sum` on an NVIDIA GPU."""
    # Importing Pallas takes long, so it is imported only where the kernel is used.
    from jax_interp.dictionaries.sparse.kernels import segment_sum_kernel

    return segment_sum_kernel(values, source, segment_offsets(target, n_targets), rows)


def segment_offsets(target: Int[Array, " entry"], n_targets: int) -> Int[Array, " target_and_one"]:
    """The index of the first entry of each target, and at the end the number of entries."""
    return jnp.searchsorted(target, jnp.arange(n_targets + 1, dtype=jnp.int32)).astype(jnp.int32)


def block_transpose(rows: Float[Array, "feature d"]) -> Float[Array, "d feature"]:
    """Return `rows.T`, computed block by block. With a plain transpose, XLA would make the preceding sums write their
    results with a stride, which is several times slower than the sums themselves."""
    n, d = rows.shape
    rows = jnp.pad(rows, ((0, -n % TRANSPOSE_BLOCK), (0, 0)))

    def transpose_block(block, out):
        part = jax.lax.dynamic_slice(rows, (block * TRANSPOSE_BLOCK, 0), (TRANSPOSE_BLOCK, d))
        return jax.lax.dynamic_update_slice(out, part.T, (0, block * TRANSPOSE_BLOCK))

    out = jax.lax.fori_loop(0, len(rows) // TRANSPOSE_BLOCK, transpose_block, jnp.zeros((d, len(rows)), rows.dtype))[
        :, :n
    ]
    return jax.lax.optimization_barrier(out)


def sort_entries(features: Int[Array, " entry"], n_features: int) -> tuple[Int[Array, " entry"], Int[Array, " entry"]]:
    """Return (features in ascending order, original index of each). The sort is stable."""
    n = features.size
    bits = max(n - 1, 1).bit_length()
    if n_features << bits <= 2**32:
        # One unsigned word holds both the feature and the index. Sorting one array is much faster than sorting pairs.
        word = jnp.sort((features.astype(jnp.uint32) << bits) | jnp.arange(n, dtype=jnp.uint32))
        return (word >> bits).astype(jnp.int32), (word & jnp.uint32((1 << bits) - 1)).astype(jnp.int32)
    origin = jnp.argsort(features)
    return features[origin], origin
