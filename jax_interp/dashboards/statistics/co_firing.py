"""Which units are on at the same positions: counts for some units, and an estimate from samples for many."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dashboards.collector import ScoredBatch
from jax_interp.dashboards.statistics.sums import Sums, as_pair, rows, wide_sum
from jax_interp.surgery.taps import static

_BLOCK = 1 << 22  # keys that are sorted at once


@register_dataclass
@dataclasses.dataclass(frozen=True)
class CoFiring(Sums):
    """The number of positions at which both of two units are on, [unit, unit]. The diagonal counts each unit alone.

    The state has two numbers for every pair of units, and each batch costs one product [unit, row] x [row, unit].

    Args:
      threshold: a unit is on where |score| is above it.
      at_most: with more units than this, nothing is counted and the result is None. None: there is no limit.
    """

    threshold: float | Float[Array, ""] = 0.0
    at_most: int | None = static(default=None)

    def of(self, batch: ScoredBatch) -> dict[str, Any]:
        if self.at_most is not None and len(batch.scores) > self.at_most:
            return {}
        on = batch.keep.reshape(-1)[None] & (jnp.abs(rows(batch)) > self.threshold)
        on = on.astype(jnp.float32)  # sums of ones are exact up to 2²⁴ positions in one batch
        return {"both": as_pair(jnp.matmul(on, on.T, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32))}

    def result(self, state: dict[str, Any]) -> Int[np.ndarray, "unit unit"] | None:
        return wide_sum(state["both"]).astype(np.int64) if state else None


def most_alike(
    both: Int[np.ndarray, "unit unit"], n: int
) -> tuple[Int[np.ndarray, "unit n"], Float[np.ndarray, "unit n"]]:
    """The units with the largest Jaccard index, |A ∩ B| / |A ∪ B|, where A and B are the positions of two units.

    Args:
      both: the result of `CoFiring`.
      n: the number of other units for each unit.

    Returns:
      (rows of `both`, -1 where there are fewer; Jaccard indices, 0 there).
    """
    alone = np.diagonal(both)
    jaccard = both / np.maximum(alone[:, None] + alone[None] - both, 1)
    np.fill_diagonal(jaccard, 0.0)
    order = np.argsort(-jaccard, axis=1, kind="stable")[:, :n]
    return _padded(order, np.take_along_axis(jaccard, order, axis=1), n)


def most_alike_in_samples(
    keys: Float[np.ndarray, "unit k"], n: int
) -> tuple[Int[np.ndarray, "unit n"], Float[np.ndarray, "unit n"]]:
    """The units with the largest Jaccard index, estimated from the samples of `UniformWindows`.

    A position has one key for all units, and a sample has the positions with the smallest keys. So the k smallest keys
    in two samples are a uniform sample of the positions at which any of the two units is on. The fraction of them that
    is in both samples estimates the Jaccard index J (Cohen and Kaplan 2007, bottom-k sketches). The standard error is
    √(J(1 - J)/k). It is exact for two units that are on at no more than k positions together.

    Args:
      keys: `Sample.keys`. inf where a unit has fewer positions.
      n: the number of other units for each unit.

    Returns:
      As `most_alike`. The 2n units whose samples share the most positions with that of a unit are compared.
    """
    from scipy import sparse  # JAX requires scipy, so it is installed

    units, k = keys.shape
    there = np.isfinite(keys)
    _, column = np.unique(keys[there], return_inverse=True)
    row, positions = np.nonzero(there)[0], int(column.max(initial=0)) + 1
    holds = sparse.csr_matrix((np.ones(len(column), np.float32), (row, column)), shape=(units, positions))
    found, values = np.full((units, n), -1), np.zeros((units, n))
    step = max(1, _BLOCK // max(1, 2 * n * 2 * k))
    for first in range(0, units, step):
        shared = (holds[first : first + step] @ holds.T).tocsr()
        mine = first + np.arange(shared.shape[0])
        candidates = np.stack([_most_shared(shared, row, unit, 2 * n) for row, unit in enumerate(mine.tolist())])
        jaccard = np.where(candidates >= 0, _jaccard(keys[mine], keys[candidates]), 0.0)
        order = np.argsort(-jaccard, axis=1, kind="stable")[:, :n]
        best = _padded(np.take_along_axis(candidates, order, 1), np.take_along_axis(jaccard, order, 1), n)
        found[mine], values[mine] = best
    return found, values


def _most_shared(shared: Any, row: int, unit: int, n: int) -> Int[np.ndarray, " n"]:
    """The `n` other units in a row of a sparse matrix with the largest counts, in ascending order; -1 after them."""
    inside = slice(shared.indptr[row], shared.indptr[row + 1])
    others, counts = shared.indices[inside], shared.data[inside]
    others, counts = others[others != unit], counts[others != unit]
    if len(others) > n:
        others = others[np.argpartition(-counts, n - 1)[:n]]
    return np.pad(np.sort(others), (0, n - len(others)), constant_values=-1)


def _jaccard(
    mine: Float[np.ndarray, "unit k"], others: Float[np.ndarray, "unit candidate k"]
) -> Float[np.ndarray, "unit candidate"]:
    """The Jaccard index in the k smallest keys of both samples."""
    k = mine.shape[-1]
    both = np.sort(np.concatenate([np.broadcast_to(mine[:, None], others.shape), others], axis=-1), axis=-1)
    again = (both[..., 1:] == both[..., :-1]) & np.isfinite(both[..., 1:])
    new = np.isfinite(both)
    new[..., 1:] &= ~again
    counted = np.cumsum(new, axis=-1)
    shared = np.sum(again & (counted[..., 1:] <= k), axis=-1)
    return shared / np.maximum(np.minimum(counted[..., -1], k), 1)


def _padded(
    units: Int[np.ndarray, "unit m"], values: Float[np.ndarray, "unit m"], n: int
) -> tuple[Int[np.ndarray, "unit n"], Float[np.ndarray, "unit n"]]:
    """`n` columns; -1 and 0 where the value is 0 and where there are too few columns."""
    missing = ((0, 0), (0, n - units.shape[1]))
    units, values = np.pad(units, missing, constant_values=-1), np.pad(values, missing)
    return np.where(values > 0, units, -1), values
