"""Products with k-sparse codes. `values [row, k]` at `indices [row, k]` represent a dense matrix z [row, feature].

Besides the product of its encoder, a k-sparse dictionary needs three products. On a CPU, none of them forms z:

    sparse_matmul(values, indices, W)      z @ W                 the decoder
    sparse_dot(g, indices, W)              (g @ W.T) at indices  the gradient that reaches the code
    sparse_outer(values, indices, g, m)    z.T @ g               the gradient of a weight row per feature

`decode` computes the first product; its derivative uses the other two. The indices of a row must all be different, as
they are after a top-k. Entries with value 0 are absent. If rows have different numbers of latents (BatchTopK), the code
is a list of entries (value, row, feature), and `decode_entries` is the decoder.

With `kernels=True`, NVIDIA GPUs use the kernels of kernels.py. On other devices the option has no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jax_interp.dictionaries.sharding import rows_spec
from jax_interp.dictionaries.sparse.segment_sum import (
    block_transpose,
    gathered_row_sum,
    segment_sum,
    segment_sum_on_gpu,
    sort_entries,
)

# On a CPU, `sparse_dot` gathers blocks of [ROWS, k, d]. A block must fit into the cache.
ROWS = 128
ENTRIES = 4096  # the same for a block of single entries
# Other devices gather at most this many numbers at a time. All 64 latents of 8192 rows would be 2 · 10⁹ at d = 4096.
GATHERED = 2**26


def to_dense(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], n_features: int
) -> Float[Array, "row feature"]:
    """The dense code. It allocates `[row, feature]` numbers, so use it for display and editing only."""
    rows = jnp.arange(values.shape[0])[:, None]
    return jnp.zeros((values.shape[0], n_features), values.dtype).at[rows, indices].set(values, unique_indices=True)


def sparse_matmul(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], W: Float[Array, "feature d"], kernels: bool = False
) -> Float[Array, "row d"]:
    """Return `z @ W` with 2·row·k·d operations instead of 2·row·feature·d."""

    def gathered(values, indices, W):
        of_rows = lambda v, i: jnp.einsum("nk,nkd->nd", v, W.at[i].get(mode="promise_in_bounds"))
        return _map_blocks(of_rows, _block_rows(indices.shape[1] * W.shape[1], len(values)), values, indices)

    def by_kernel(values, indices, W):
        from jax_interp.dictionaries.sparse.kernels import segment_sum_kernel

        rows, k = indices.shape
        edges = jnp.arange(rows + 1, dtype=jnp.int32) * k
        return segment_sum_kernel(values.reshape(-1), indices.reshape(-1), edges, W)

    chosen = _on_cuda(kernels, by_kernel)
    return jax.lax.platform_dependent(values, indices, W, cpu=gathered_row_sum, default=gathered, **chosen)


def _on_cuda(kernels: bool, product: Callable[..., Array]) -> dict[str, Callable[..., Array]]:
    """The branch of `platform_dependent` for NVIDIA GPUs, if kernels were asked for. There is none on a mesh: a
    kernel cannot be divided between devices, so each device would gather all rows and all of W."""
    return {"cuda": product} if kernels and jax.sharding.get_abstract_mesh().empty else {}


def _block_rows(numbers: int, rows: int) -> int:
    """The number of rows to process at a time, if each row gathers `numbers` numbers. On a mesh it is all rows, because
    cutting a sharded axis into blocks would gather the axis."""
    return max(GATHERED // numbers, 1) if jax.sharding.get_abstract_mesh().empty else rows


def _map_blocks(of_rows: Callable[..., Array], size: int, *arrays: Array) -> Array:
    """Compute `of_rows(*arrays)`, `size` rows at a time."""
    n = len(arrays[0])
    if size >= n:
        return of_rows(*arrays)
    pad = lambda a: jnp.pad(a, ((0, -n % size), *[(0, 0)] * (a.ndim - 1)))
    out = jax.lax.map(lambda block: of_rows(*block), tuple(pad(a).reshape(-1, size, *a.shape[1:]) for a in arrays))
    return out.reshape(-1, *out.shape[2:])[:n]


def sparse_dot(
    g: Float[Array, "row d"], indices: Int[Array, "row k"], W: Float[Array, "feature d"], kernels: bool = False
) -> Float[Array, "row k"]:
    """Return `g @ W.T` at the entries `indices` only."""

    def gathered(size, g, indices, W):
        of_rows = lambda g, i: jnp.einsum("nd,nkd->nk", g, W.at[i].get(mode="promise_in_bounds"))
        return _map_blocks(of_rows, size, g, indices)

    def by_kernel(g, indices, W):
        from jax_interp.dictionaries.sparse.kernels import dot_kernel

        rows = jnp.repeat(jnp.arange(len(g), dtype=jnp.int32), indices.shape[1])
        return dot_kernel(g, rows, W, indices.reshape(-1)).reshape(indices.shape)

    elsewhere = partial(gathered, _block_rows(indices.shape[1] * W.shape[1], len(g)))
    chosen = _on_cuda(kernels, by_kernel)
    return jax.lax.platform_dependent(g, indices, W, cpu=partial(gathered, ROWS), default=elsewhere, **chosen)


def sparse_outer(
    values: Float[Array, "row k"],
    indices: Int[Array, "row k"],
    g: Float[Array, "row d"],
    n_features: int,
    transpose: bool = False,
    kernels: bool = False,
) -> Float[Array, "feature d"]:
    """Return `z.T @ g`, or `g.T @ z` ([d, feature]) with `transpose`.

    The result is deterministic on every backend. The CPU sorts the entries by feature and adds the entries of a feature
    in a tree. Other devices multiply with the dense code. Scattered additions would be slower there, and their order
    would change from run to run. The kernel adds the sorted entries of a feature in order.
    """

    def dense(values, indices, g):
        z = to_dense(values, indices, n_features)
        return g.T @ z if transpose else z.T @ g

    def by_feature(sums, values, indices, g):
        features, origin = sort_entries(indices.reshape(-1), n_features)
        values = values.reshape(-1).at[origin].get(mode="promise_in_bounds")
        return sums(values, origin // indices.shape[1], features, g, n_features)

    def by_trees(values, indices, g):
        out = by_feature(segment_sum, values, indices, g)
        return block_transpose(out) if transpose else out

    def by_kernel(values, indices, g):
        out = by_feature(segment_sum_on_gpu, values, indices, g)
        return out.T if transpose else out

    chosen = _on_cuda(kernels, by_kernel)
    return _sum_over_rows(
        lambda *arrays: jax.lax.platform_dependent(*arrays, cpu=by_trees, default=dense, **chosen), values, indices, g
    )


def _sum_over_rows(of_rows: Callable[..., Array], *arrays: Array) -> Array:
    """A sum over rows. On a mesh each device sums its own rows, and only the sums are communicated. The partitioner of
    XLA would gather the rows for a sort."""
    axes = rows_spec(len(arrays[0]))
    if jax.sharding.get_abstract_mesh().empty or not axes:
        return of_rows(*arrays)
    of_device = lambda *arrays: jax.lax.psum(of_rows(*arrays), axes)
    return jax.shard_map(of_device, in_specs=P(axes), out_specs=P(), check_vma=False)(*arrays)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def decode(
    values: Float[Array, "row k"], indices: Int[Array, "row k"], W_dec: Float[Array, "feature d"], kernels: bool = False
) -> Float[Array, "row d"]:
    """Return `z @ W_dec`. The gradients touch only the k entries of each row."""
    return sparse_matmul(values, indices, W_dec, kernels)


def _decode_forward(values, indices, W_dec, kernels):
    return sparse_matmul(values, indices, W_dec, kernels), (values, indices, W_dec)


def _decode_backward(kernels, residuals, g):
    values, indices, W_dec = residuals
    outer = sparse_outer(values, indices, g, W_dec.shape[0], kernels=kernels)
    return sparse_dot(g, indices, W_dec, kernels), None, outer


decode.defvjp(_decode_forward, _decode_backward)


def entries_dot(
    g: Float[Array, "row d"],
    rows: Int[Array, " entry"],
    features: Int[Array, " entry"],
    W: Float[Array, "feature d"],
    kernels: bool = False,
) -> Float[Array, " entry"]:
    """Return `g @ W.T` at the entries only. The result at an unused place is arbitrary."""
    rows, features = jnp.minimum(rows, len(g) - 1), jnp.minimum(features, len(W) - 1)
    products = lambda rows, features: jnp.sum(g[rows] * W.at[features].get(mode="promise_in_bounds"), axis=1)
    gathered = lambda size, rows, features: _map_blocks(products, size, rows, features)
    elsewhere = _block_rows(W.shape[1], len(rows))

    def by_kernel(rows, features):
        from jax_interp.dictionaries.sparse.kernels import dot_kernel

        return dot_kernel(g, rows, W, features)

    chosen = _on_cuda(kernels, by_kernel)
    return jax.lax.platform_dependent(
        rows, features, cpu=partial(gathered, ENTRIES), default=partial(gathered, elsewhere), **chosen
    )


def entries_outer(
    values: Float[Array, " entry"],
    rows: Int[Array, " entry"],
    features: Int[Array, " entry"],
    g: Float[Array, "row d"],
    n_features: int,
    transpose: bool = False,
    kernels: bool = False,
) -> Float[Array, "feature d"]:
    """Return `z.T @ g` for a list of entries, or `g.T @ z` with `transpose`. The result is deterministic, like that of
    `sparse_outer`. Entries whose feature is `n_features` are ignored."""

    def dense(values, rows, features, g):
        z = jnp.zeros((g.shape[0], n_features), values.dtype).at[rows, features].add(values, mode="drop")
        return g.T @ z if transpose else z.T @ g

    def by_feature(sums, values, rows, features, g):
        features, origin = sort_entries(features, n_features + 1)
        take = lambda a: a.at[origin].get(mode="promise_in_bounds")
        return sums(take(values), take(rows), features, g, n_features)

    def by_trees(values, rows, features, g):
        out = by_feature(segment_sum, values, rows, features, g)
        return block_transpose(out) if transpose else out

    def by_kernel(values, rows, features, g):
        out = by_feature(segment_sum_on_gpu, values, rows, features, g)
        return out.T if transpose else out

    chosen = _on_cuda(kernels, by_kernel)
    return jax.lax.platform_dependent(values, rows, features, g, cpu=by_trees, default=dense, **chosen)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def decode_entries(
    values: Float[Array, " entry"],
    rows: Int[Array, " entry"],
    features: Int[Array, " entry"],
    W_dec: Float[Array, "feature d"],
    n_rows: int,
    kernels: bool = False,
) -> Float[Array, "row d"]:
    """Return `z @ W_dec` for a list of entries in ascending order of rows. The gradients touch only the entries.
    Entries whose row is `n_rows` are ignored."""

    def dense(values, rows, features, W):
        return jnp.zeros((n_rows, W.shape[0]), values.dtype).at[rows, features].add(values, mode="drop") @ W

    def by_trees(values, rows, features, W):
        return segment_sum(values, features, rows, W, n_rows)

    def by_kernel(values, rows, features, W):
        return segment_sum_on_gpu(values, features, rows, W, n_rows)

    chosen = _on_cuda(kernels, by_kernel)
    return jax.lax.platform_dependent(values, rows, features, W_dec, cpu=by_trees, default=dense, **chosen)


def _decode_entries_forward(values, rows, features, W_dec, n_rows, kernels):
    return decode_entries(values, rows, features, W_dec, n_rows, kernels), (values, rows, features, W_dec)


def _decode_entries_backward(n_rows, kernels, residuals, g):
    values, rows, features, W_dec = residuals
    outer = entries_outer(values, rows, features, g, W_dec.shape[0], kernels=kernels)
    return entries_dot(g, rows, features, W_dec, kernels), None, None, outer


decode_entries.defvjp(_decode_entries_forward, _decode_entries_backward)
