"""How often and how strongly units are on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import ScoredBatch
from jax_interp.dashboards.feature_data import Histogram
from jax_interp.dashboards.statistics.sums import Sums, add_pairs, as_pair, rows, wide_sum

_LOW, _HIGH, _PER_OCTAVE = -20, 20, 4
_SIDE = (_HIGH - _LOW) * _PER_OCTAVE
_BINS = 2 * _SIDE + 1


@register_dataclass
@dataclasses.dataclass(frozen=True)
class KeptPositions(Sums):
    """The number of kept positions. The result is an integer."""

    def of(self, batch: ScoredBatch) -> dict[str, Any]:
        return {"kept": as_pair(jnp.sum(batch.keep, dtype=jnp.int32))}

    def result(self, state: dict[str, tuple[np.ndarray, np.ndarray]]) -> int:
        return int(wide_sum(state["kept"]))


@dataclasses.dataclass(frozen=True)
class UnitActivity:
    """How often and how strongly each unit is on.

    Args:
      firings: the number of kept positions at which the unit is on.
      mean: the mean of the scores that are on. 0 for a unit that is never on.
      highest: the largest of these scores. 0 for a unit that is never on.
      lowest: the smallest of these scores, if it is negative, and otherwise 0.
      histogram: these scores. All units have the same edges.
    """

    firings: Int[np.ndarray, " unit"]
    mean: Float[np.ndarray, " unit"]
    highest: Float[np.ndarray, " unit"]
    lowest: Float[np.ndarray, " unit"]
    histogram: Histogram


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Activity:
    """How often and how strongly each unit is on. The result is a `UnitActivity`. Counts are exact up to 2⁴⁸.

    Bins are logarithmic, for positive and for negative scores: each octave from 2⁻²⁰ to 2²⁰ has four bins of equal
    width, with edges 1, 1.25, 1.5, 1.75 times a power of two. A bin holds its edge that is nearer to 0. Scores closer
    to 0 have one bin between the two sides, and larger ones are in the outermost bins. The result has the bins from the
    first to the last that any unit needs.

    Args:
      threshold: a unit is on where |score| is above it.
    """

    threshold: float | Float[Array, ""] = 0.0

    def of(self, batch: ScoredBatch) -> dict[str, Any]:
        scores = rows(batch)
        on = batch.keep.reshape(-1)[None] & (jnp.abs(scores) > self.threshold)
        chosen = jnp.where(on, scores, 0.0)
        place = jnp.where(on, _bin_of(scores), _BINS)  # outside: dropped
        unit = jnp.arange(scores.shape[0])[:, None]
        counts = jnp.zeros((scores.shape[0], _BINS), jnp.int32).at[unit, place].add(1, mode="drop")
        return {
            "fired": as_pair(jnp.sum(on, axis=1, dtype=jnp.int32)),
            "total": as_pair(jnp.sum(chosen, axis=1)),
            "counts": as_pair(counts),
            "highest": jnp.max(jnp.where(on, scores, -jnp.inf), axis=1),
            "lowest": jnp.min(chosen, axis=1),
        }

    def merge(self, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
        sums = {name: add_pairs(first[name], second[name]) for name in ("fired", "total", "counts")}
        extremes = (("highest", jnp.maximum), ("lowest", jnp.minimum))
        return sums | {name: best(first[name], second[name]) for name, best in extremes}

    def result(self, state: dict[str, Any]) -> UnitActivity:
        fired, total, counts = (wide_sum(state[name]) for name in ("fired", "total", "counts"))
        highest = np.where(np.isneginf(state["highest"]), 0.0, state["highest"]).astype(np.float32)
        mean = (total / np.maximum(fired, 1)).astype(np.float32)
        histogram = _trimmed(counts.astype(np.int64))
        return UnitActivity(fired.astype(np.int64), mean, highest, state["lowest"], histogram)


def _bin_of(scores: Float[Array, "unit row"]) -> Int[Array, "unit row"]:
    """The bin of each score. Exponent and first two bits of the fraction of a float32 are the number of its bin."""
    number = jax.lax.bitcast_convert_type(jnp.abs(scores), jnp.int32) >> 21
    number = jnp.clip(number - (127 + _LOW) * _PER_OCTAVE + 1, 0, _SIDE)  # 0: the bin in the middle
    return _SIDE + jnp.where(scores < 0, -number, number)


def bin_edges() -> Float[np.ndarray, " edge"]:
    """The edges of all bins, ascending."""
    octaves = np.repeat(2.0 ** np.arange(_LOW, _HIGH), _PER_OCTAVE)
    side = np.append(octaves * np.tile(1 + np.arange(_PER_OCTAVE) / _PER_OCTAVE, _HIGH - _LOW), 2.0**_HIGH)
    return np.concatenate([-side[::-1], side])


def _trimmed(counts: Int[np.ndarray, "unit bin"]) -> Histogram:
    """The bins that some unit needs, and at least one."""
    used = np.flatnonzero(counts.any(axis=0))
    first, last = (used[0], used[-1]) if len(used) else (_SIDE, _SIDE)
    return Histogram(bin_edges()[first : last + 2], counts[:, first : last + 1])
