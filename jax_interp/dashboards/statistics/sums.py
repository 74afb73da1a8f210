"""Sums over a long text, in 48 bits."""

from __future__ import annotations

from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.dashboards.collector import ScoredBatch

Pair: TypeAlias = tuple[Float[Array, "..."], Float[Array, "..."]]
"""A sum as two float32 numbers, the second far smaller than the first. Together they hold 48 bits."""


def as_pair(values: Float[Array, "..."] | Int[Array, "..."]) -> Pair:
    """Floats, or counts of at most 31 bits, as pairs."""
    if jnp.issubdtype(values.dtype, jnp.floating):
        return values, jnp.zeros_like(values)
    low = values & 0xFFF  # float32 holds 24 bits of an int32
    return (values - low).astype(jnp.float32), low.astype(jnp.float32)


def add_pairs(first: Pair, second: Pair) -> Pair:
    """The sum with the rounding error of each addition (Knuth, The Art of Computer Programming 2, 4.2.2)."""
    (a, rest_of_a), (b, rest_of_b) = first, second
    total = a + b
    part = total - a
    rest = (a - (total - part)) + (b - part) + (rest_of_a + rest_of_b)
    high = total + rest
    return high, jnp.where(jnp.isfinite(high), rest - (high - total), 0.0)


def wide_sum(pair: tuple[np.ndarray, np.ndarray]) -> Float[np.ndarray, "..."]:
    """The sum as float64, which holds all of its bits."""
    return np.add(*pair, dtype=np.float64)


class Sums:
    """A statistic whose state is a dict of sums. Within a batch they are float32 or int32. Over batches they have 48
    bits: an int32 count would wrap at 2³¹, and a float32 sum over millions of positions would not be precise."""

    def merge(self, first: dict[str, Pair], second: dict[str, Pair]) -> dict[str, Pair]:
        return {name: add_pairs(first[name], second[name]) for name in first}


def rows(batch: ScoredBatch) -> Float[Array, "unit row"]:
    """The scores with sequences and positions in one axis."""
    return batch.scores.reshape(batch.scores.shape[0], batch.tokens.size)  # with no units, -1 would be ambiguous
