"""Shuffling: a buffer on the device that shuffles a stream of rows, and pseudo-random permutations on the host.

A `Buffer` takes rows in order and returns them in random order. All shapes are static. The buffer has `batch` bins of
`depth` rows. A draw takes one random row of every bin and replaces it by a new row. The rows of a draw are therefore
distinct, each row in the buffer is equally likely to be drawn, and the whole buffer is never permuted or copied. New
rows are assigned to the bins in random order. A row stays in the buffer for `depth` draws on average (geometrically
distributed).

`shuffled` is a pseudo-random permutation of `range(n)` that is computed for each index separately.
`shuffled_in_windows` is one that stays within some blocks of neighbouring indices for a while.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int, Key
from numpy.typing import ArrayLike

from jax_interp.core.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Buffer:
    """A shuffle buffer on the device: `rows[bin + batch * i]` is the i-th row of a bin."""

    rows: Float[Array, "capacity d"]
    filled: Int[Array, ""]
    """The number of rows that contain data. They are the first rows."""
    batch: int = dataclasses.field(metadata={"static": True})
    """The number of bins, which is the number of rows in a draw."""

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
    """Draw one random row of each bin of a full buffer, and replace the drawn rows by new rows.

    Args:
      buffer: a full buffer.
      key: the random key of this draw.
      fresh: the new rows, one for each bin.
      keep: which new rows enter the buffer. If n new rows are left out, n drawn rows also stay in the buffer.

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
    # Indices outside the buffer are dropped. They must be distinct too, because unique_indices=True requires it.
    target = jnp.where(jnp.arange(n) < jnp.sum(keep), target, buffer.capacity + jnp.arange(n))
    return dataclasses.replace(buffer, rows=buffer.rows.at[target].set(fresh, mode="drop", unique_indices=True)), rows


ROUNDS = 8  # of the Feistel network; with four rounds, permutations of 1000 have measurable correlations


def mix64(x: ArrayLike) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): uint64 -> uint64, a bijection whose bits look random."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is intended
        x = np.asarray(x, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def seed_bits(seed: int) -> np.uint64:
    """A seed of any size and sign as 64 bits."""
    return np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF)


def shuffled(index: Int[np.ndarray, " k"], n: int, *, seed: int, epoch: ArrayLike = 0) -> Int[np.ndarray, " k"]:
    """Apply a pseudo-random permutation of `range(n)` to `index`.

    The permutation is a Feistel network over the next even power of two, with cycle walking. No array of size `n` is
    built, and the cost per index does not depend on `n`. Only integer arithmetic is used, so the order does not depend
    on the version of NumPy's generators.

    Args:
      index: indices from 0 to n - 1.
      n: the size of the permutation.
      seed: an integer of any size and sign.
      epoch: an epoch number, or an array that broadcasts to `index`. Each (seed, epoch) has its own permutation.

    Returns:
      int64 indices of the shape of `index`.
    """
    half = max(1, math.ceil(math.log2(max(n, 2)) / 2))
    low, bits = np.uint64((1 << half) - 1), np.uint64(half)
    key = mix64(mix64(seed_bits(seed)) ^ np.asarray(epoch, np.uint64))
    key = np.broadcast_to(key, np.shape(index)).copy()
    is_one = key.size > 0 and bool((key == key.flat[0]).all())  # one key for all: its rounds are mixed only once
    value = np.asarray(index, np.uint64).copy()
    pending = np.ones(value.shape, bool)
    while pending.any():  # the domain is under 4 n (n if n is its size), so a few rounds
        left, right = value[pending] >> bits, value[pending] & low
        keys = key.reshape(-1)[:1] if is_one else key[pending]
        for r in range(ROUNDS):
            left, right = right, left ^ (mix64(right ^ mix64(keys + np.uint64(r))) & low)
        value[pending] = (left << bits) | right
        pending &= value >= n
    return value.astype(np.int64)


def shuffled_in_windows(
    index: Int[np.ndarray, " k"], n: int, *, window: int, block: int, seed: int, epoch: ArrayLike = 0
) -> Int[np.ndarray, " k"]:
    """Apply a pseudo-random permutation of `range(n)` that uses up one window after the other.

    A window is some blocks of neighbouring indices. The blocks are in random order, so a window has blocks from all of
    `range(n)`; within a window the order of the indices is random. In each epoch every index occurs once. Two indices
    of one block are always in the same window, which is what such an order loses against `shuffled`.

    Args:
      index: indices from 0 to n - 1.
      n: the size of the permutation.
      window: the number of indices in a window. It is rounded down to whole blocks. The last window also has what is
        left over, so it can be up to twice as long.
      block: the number of indices in a block.
      seed: as in `shuffled`.
      epoch: as in `shuffled`.

    Returns:
      int64 indices of the shape of `index`.
    """
    index, epoch = np.asarray(index, np.int64), np.broadcast_to(np.asarray(epoch, np.uint64), np.shape(index))
    block = min(block, window, n)
    blocks, per_window = n // block, window // block
    windows = max(1, blocks // per_window)
    which = np.minimum(index // (per_window * block), windows - 1)
    place, last = index - which * per_window * block, which == windows - 1
    key = mix64(mix64(epoch) ^ which.astype(np.uint64))  # each window of each epoch has its own order
    for chosen, size in ((~last, per_window * block), (last, n - (windows - 1) * per_window * block)):
        place[chosen] = shuffled(place[chosen], size, seed=seed, epoch=key[chosen])
    number, within = which * per_window + place // block, place % block
    whole = number < blocks  # the rest of `range(n)` is no whole block and stays at the end
    number[whole] = shuffled(number[whole], blocks, seed=seed, epoch=epoch[whole])
    return number * block + within
