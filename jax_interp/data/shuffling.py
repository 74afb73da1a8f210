"""Random orders: of rows that stream through a buffer on the device, and of any number of indices.

A `Buffer` takes rows in order and gives them back in random order, in shapes that never change. It is `batch` bins of
`depth` rows. A draw takes one random row of every bin and puts a fresh row in its place. The rows of a draw are
therefore distinct, each row is equally likely to leave, and nothing of the size of the buffer is permuted or copied.
Fresh rows are dealt to the bins in random order. A row stays `depth` draws on average (geometrically distributed).

`shuffled` is a pseudo-random permutation of `range(n)` that is computed index by index, on the host.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key
from numpy.typing import ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Buffer:
    """A shuffle buffer on the device: `rows[bin + batch * i]` is the i-th row of a bin."""

    rows: Float[Array, "capacity d"]
    filled: Int[Array, ""]
    """How many of the first rows hold data."""
    batch: int = dataclasses.field(metadata={"static": True})
    """How many rows a draw takes: the number of bins."""

    @property
    def capacity(self) -> int:
        return self.rows.shape[0]


def init_buffer(batch: int, depth: int, d: int, dtype: DTypeLike = jnp.float32) -> Buffer:
    """An empty buffer for `batch * depth` rows of width `d`."""
    return Buffer(jnp.zeros((batch * depth, d), dtype), jnp.zeros((), jnp.int32), batch)


def fill(buffer: Buffer, rows: Float[Array, "batch d"], keep: Bool[Array, " batch"]) -> Buffer:
    """Append the rows marked `keep` until the buffer is full. Once it is full, `draw` replaces rows."""
    place = buffer.filled + jnp.cumsum(keep.astype(jnp.int32)) - 1
    place = jnp.where(keep, place, buffer.capacity)  # out of range: dropped
    filled = jnp.minimum(buffer.filled + jnp.sum(keep, dtype=jnp.int32), buffer.capacity)
    return dataclasses.replace(
        buffer, rows=buffer.rows.at[place].set(rows.astype(buffer.rows.dtype), mode="drop"), filled=filled
    )


def draw(
    buffer: Buffer, key: Key[Array, ""], fresh: Float[Array, "batch d"], keep: Bool[Array, " batch"]
) -> tuple[Buffer, Float[Array, "batch d"]]:
    """Draw one random row of each bin of a full buffer, and put fresh rows in their places.

    Args:
      buffer: a full buffer.
      key: random key of this draw.
      fresh: as many rows as a draw has.
      keep: which fresh rows enter the buffer. Where some are left out, as many drawn rows stay in it.

    Returns:
      The buffer after the draw, and the drawn rows.
    """
    n = buffer.batch
    which, deal = jax.random.split(key)
    place = jnp.arange(n) + n * jax.random.randint(which, (n,), 0, buffer.capacity // n)
    rows = buffer.rows[place]
    kept_first = jnp.argsort(~keep, stable=True)
    fresh = fresh[kept_first].astype(rows.dtype)
    target = jax.random.permutation(deal, place)
    # Places outside the buffer are dropped; each differs from the others, as unique_indices promises.
    target = jnp.where(jnp.arange(n) < jnp.sum(keep), target, buffer.capacity + jnp.arange(n))
    return dataclasses.replace(buffer, rows=buffer.rows.at[target].set(fresh, mode="drop", unique_indices=True)), rows


ROUNDS = 8  # of the Feistel network; four leave correlations that can be measured between permutations of 1000


def mix64(x: ArrayLike) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): uint64 -> uint64, a bijection whose bits look random."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is what is meant
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def seed_bits(seed: int) -> np.uint64:
    """A seed of any size and sign as 64 bits."""
    return np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF)


def shuffled(index: Int[np.ndarray, " k"], n: int, *, seed: int, epoch: ArrayLike = 0) -> Int[np.ndarray, " k"]:
    """The places to which a pseudo-random permutation of `range(n)` sends `index`.

    It is a Feistel network over the next even power of two, with cycle walking. Nothing of size `n` is built, and one
    index costs the same whatever `n` is. It uses integer arithmetic only, so the order does not depend on the version
    of numpy's generators.

    Args:
      index: indices from 0 to n - 1.
      n: the size of the permutation.
      seed: of any size and sign.
      epoch: broadcasts against `index`. There is one permutation for each (seed, epoch).

    Returns:
      int64 indices of the shape of `index`.
    """
    half = max(1, math.ceil(math.log2(max(n, 2)) / 2))
    low, bits = np.uint64((1 << half) - 1), np.uint64(half)
    key = mix64(mix64(seed_bits(seed)) ^ np.asarray(epoch, np.uint64))
    key = np.broadcast_to(key, np.shape(index)).copy()
    value = np.asarray(index, np.uint64).copy()
    pending = np.ones(value.shape, bool)
    while pending.any():  # the domain is under 4 n (n if n is its size), so a few rounds
        left, right = value[pending] >> bits, value[pending] & low
        for r in range(ROUNDS):
            left, right = right, left ^ (mix64(right ^ mix64(key[pending] + np.uint64(r))) & low)
        value[pending] = (left << bits) | right
        pending &= value >= n
    return value.astype(np.int64)
