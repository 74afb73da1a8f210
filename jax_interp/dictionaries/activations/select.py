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
