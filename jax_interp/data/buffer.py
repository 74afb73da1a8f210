"""A shuffle buffer on the device: rows go in in the order they come and leave in random order.

A buffer holds up to `capacity` rows. `push` appends rows, `draw` removes a uniformly random set of them without
replacement, so that every row leaves exactly once. It is a pytree of arrays and both operations are pure functions
with fixed shapes: they run under `jit` and `scan`, and a buffer in a checkpoint goes on with the same rows.

Mixing: with `f` rows inside before every draw of `n` and as many pushed after it, a row stays `f / n` draws on average
(geometrically distributed), so the rows of a draw come from about the last `f / n` pushes and two rows pushed together
leave together with probability about `n / (2 f)`. Fill it well before the first draw: a draw of all rows is only a
permutation of them.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Int, Key, Shaped

from jax_interp.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShuffleBuffer:
    """The first `filled` of `rows` are held, in no order that means anything; the others are left-overs."""

    rows: Shaped[Array, "capacity d"]
    filled: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """How many rows there is room for."""
        return self.rows.shape[0]


def empty_buffer(capacity: int, d: int, dtype: DTypeLike = jnp.float32) -> ShuffleBuffer:
    """Room for `capacity` rows of width `d`."""
    if capacity < 1 or d < 1:
        raise UserError(f"a buffer of {capacity} rows of width {d}: both must be at least 1")
    return ShuffleBuffer(jnp.zeros((capacity, d), dtype), jnp.zeros((), jnp.int32))


def push(
    buffer: ShuffleBuffer, rows: Shaped[Array, "n d"], keep: Bool[Array, " n"] | None = None
) -> tuple[ShuffleBuffer, Int[Array, ""]]:
    """`(buffer, dropped)`: the rows marked `keep` (default all) appended; `dropped` of them found no room.

    Room is data and cannot raise under `jit`: keep `filled + n <= capacity`, or look at `dropped`. O(n).
    """
    keep = jnp.ones(len(rows), bool) if keep is None else keep
    place = buffer.filled + jnp.cumsum(keep, dtype=jnp.int32) - 1
    place = jnp.where(keep, place, buffer.capacity)  # beyond the end: dropped by the scatter
    wanted = buffer.filled + jnp.sum(keep, dtype=jnp.int32)
    filled = jnp.minimum(wanted, buffer.capacity)
    stored = buffer.rows.at[place].set(rows.astype(buffer.rows.dtype), mode="drop")
    return ShuffleBuffer(stored, filled), wanted - filled


def draw(
    buffer: ShuffleBuffer, key: Key[Array, ""], n: int
) -> tuple[ShuffleBuffer, Shaped[Array, "n d"], Bool[Array, " n"]]:
    """`(buffer, rows, real)`: `n` rows at random without replacement, removed, in random order.

    Every set of `n` held rows is equally likely (up to ties among 32-bit random numbers). Where fewer than `n` are
    held, all of them come out and `real` is False for the places left over, which are zero. O(capacity): one random
    number per place and a partial sort; the rows themselves are not moved but for those that fill the holes.
    """
    capacity = buffer.capacity
    if not 1 <= n <= capacity:
        raise UserError(f"cannot draw {n} rows from a buffer of capacity {capacity}: 1 to {capacity}")
    place = jnp.arange(capacity)
    # Shifted by one bit so that every held row ranks above every left-over.
    rank = (jax.random.bits(key, (capacity,), jnp.uint32) >> 1).astype(jnp.int32)
    _, chosen = jax.lax.top_k(jnp.where(place < buffer.filled, rank, -1), n)
    real = jnp.arange(n) < buffer.filled
    rows = jnp.where(real[:, None], buffer.rows[chosen], jnp.zeros((), buffer.rows.dtype))
    left = jnp.maximum(buffer.filled - n, 0)

    # Rows of the tail that were not drawn move into the holes before it; there are as many of one as of the other.
    drawn = jnp.zeros(capacity, bool).at[jnp.where(real, chosen, capacity)].set(True, mode="drop")
    tail = left + jnp.arange(n)
    moves = (tail < buffer.filled) & ~drawn[jnp.minimum(tail, capacity - 1)]
    holes = jnp.sort(jnp.where(real & (chosen < left), chosen, capacity))
    order = jnp.argsort(~moves, stable=True)
    movers = jnp.where(moves[order], tail[order], capacity - 1)
    target = jnp.where(moves[order], holes, capacity)
    return ShuffleBuffer(buffer.rows.at[target].set(buffer.rows[movers], mode="drop"), left), rows, real
