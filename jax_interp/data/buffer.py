"""A shuffle buffer on the device: rows go in in order and come out in random order, in shapes that never change.

The buffer is `batch` bins of `depth` rows. A draw takes one random row of every bin and puts a fresh row in its place,
so the rows of a draw are distinct, each is equally likely to leave, and nothing the size of the buffer is permuted or
copied. Fresh rows are dealt to the bins in random order. A row stays `depth` draws on average (geometrically).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Buffer:
    """`rows[bin + batch·i]` is the i-th row of a bin; the first `filled` rows hold data."""

    rows: Float[Array, "capacity d"]
    filled: Int[Array, ""]
    batch: int = dataclasses.field(metadata={"static": True})

    @property
    def capacity(self) -> int:
        return self.rows.shape[0]


def empty_buffer(batch: int, depth: int, d: int, dtype: Any = jnp.float32) -> Buffer:
    """Room for `batch · depth` rows of width `d`."""
    return Buffer(jnp.zeros((batch * depth, d), dtype), jnp.zeros((), jnp.int32), batch)


def kept_first(keep: Bool[Array, " row"]) -> Int[Array, " row"]:
    """An order of the rows: those to keep, in their order, then the others."""
    return jnp.argsort(~keep, stable=True)


def put(buffer: Buffer, rows: Float[Array, "batch d"], keep: Bool[Array, " batch"]) -> Buffer:
    """Append the rows marked `keep`, as far as there is room. For filling; `draw` does the rest."""
    place = buffer.filled + jnp.cumsum(keep.astype(jnp.int32)) - 1
    place = jnp.where(keep, place, buffer.capacity)  # out of range: dropped
    filled = jnp.minimum(buffer.filled + jnp.sum(keep, dtype=jnp.int32), buffer.capacity)
    return dataclasses.replace(
        buffer, rows=buffer.rows.at[place].set(rows.astype(buffer.rows.dtype), mode="drop"), filled=filled
    )


def draw(
    buffer: Buffer, key: Key[Array, ""], fresh: Float[Array, "batch d"], keep: Bool[Array, " batch"]
) -> tuple[Buffer, Float[Array, "batch d"]]:
    """(buffer, rows): one row of each bin of a full buffer, replaced by `fresh` rows marked `keep`. Where fewer are
    kept than drawn, the remaining drawn rows stay where they are."""
    n = buffer.batch
    which, deal = jax.random.split(key)
    place = jnp.arange(n) + n * jax.random.randint(which, (n,), 0, buffer.capacity // n)
    rows = buffer.rows[place]
    fresh = fresh[kept_first(keep)].astype(rows.dtype)
    target = jax.random.permutation(deal, place)
    # Places outside the buffer are dropped; each differs from the others, as unique_indices promises.
    target = jnp.where(jnp.arange(n) < jnp.sum(keep), target, buffer.capacity + jnp.arange(n))
    return dataclasses.replace(buffer, rows=buffer.rows.at[target].set(fresh, mode="drop", unique_indices=True)), rows
