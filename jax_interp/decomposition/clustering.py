"""Clusters of components that are important together, by minimum description length (VPD 2026).

    L = Σ_i s_i (log2 k + α r_i)        s_i rows on which cluster i is on, r_i its rank, k clusters

Merging two clusters that are on together saves the bits that name one of them. Where one is on without the other, it
costs the other's rank. The greedy run merges down to one cluster; the result is the stage with the shortest
description.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError

Numbers = TypeVar("Numbers", float, np.ndarray)  # of one merge, or of many


@dataclasses.dataclass(frozen=True)
class Clustering:
    """Clusters of components.

    owner: the cluster of each component, at the stage with the shortest description.
    lengths: the description length in bits over all rows, before the first merge and after each merge.
    """

    owner: Int[np.ndarray, " component"]
    lengths: Float[np.ndarray, " merges"]


def description_length(
    on: Bool[np.ndarray, "row component"],
    owner: Int[np.ndarray, " component"],
    alpha: float,
    ranks: np.ndarray | None = None,
) -> float:
    """`Σ_i s_i (log2 k + α r_i)`. A cluster is on where any of its components is on.

    Args:
      on: which components are on at which rows.
      owner: the cluster of each component.
      alpha: the weight of ranks.
      ranks: of the components; None: 1 each.
    """
    ranks = np.ones(on.shape[1]) if ranks is None else np.asarray(ranks, float)
    groups = np.unique(owner)
    return float(
        sum(
            on[:, owner == i].any(axis=1).sum() * (math.log2(len(groups)) + alpha * ranks[owner == i].sum())
            for i in groups
        )
    )


def merge_cost(
    s_i: Numbers, s_j: Numbers, s_both: Numbers, total: float, k: int, r_i: Numbers, r_j: Numbers, alpha: float
) -> Numbers:
    """How much longer the description becomes by a merge. Numbers for one merge, or arrays for many.

    Args:
      s_i, s_j: the numbers of rows on which each cluster is on.
      s_both: the number of rows on which either is on.
      total: Σ s over all clusters.
      k: the number of clusters.
      r_i, r_j: their ranks.
      alpha: the weight of ranks.
    """
    rest = total - s_i - s_j
    shorter = rest * (math.log2(k - 1) - math.log2(k)) if k > 1 else 0.0
    name = s_both * math.log2(k - 1) if k > 1 else 0.0
    return shorter + name - (s_i + s_j) * math.log2(k) + alpha * (s_both * (r_i + r_j) - s_i * r_i - s_j * r_j)


def cluster(
    importance: Float[np.ndarray, "row component"],
    *,
    alpha: float = 1.0,
    threshold: float = 0.01,
    ranks: np.ndarray | None = None,
    gamma: float | None = None,
    seed: int = 0,
) -> Clustering:
    """Merge clusters pairwise down to one, the cheapest pair first, and return the best of all stages.

    It takes components³ operations: seconds for five hundred.

    Args:
      importance: lower importances on a dataset.
      alpha: the weight of ranks.
      threshold: components are on where their importance is above this.
      ranks: of the components; None: 1 each.
      gamma: where given, the candidate in place J is merged with probability proportional to e^(-γ J) (VPD: .2).
        Several seeds then show which clusters are stable.
      seed: of these random choices.

    Returns:
      The clusters. Components that are never on stay alone.

    Raises:
      UserError: the importances are not a matrix, or no component is ever on.
    """
    on = np.asarray(importance) > threshold
    if on.ndim != 2:
        raise UserError(f"importances for clustering are [row, component], got shape {on.shape}")
    rng = np.random.default_rng(seed)
    groups = [[c] for c in range(on.shape[1]) if on[:, c].any()]
    if not groups:
        raise UserError(f"no component is ever above the threshold {threshold}")
    first = [c[0] for c in groups]
    active = np.ascontiguousarray(on[:, first].T)
    together = (active.astype(np.float32) @ active.T.astype(np.float32)).astype(float)
    ranks = np.ones(len(groups)) if ranks is None else np.asarray(ranks, float)[first]
    stage = _Stage(groups, ranks, active, active.sum(axis=1).astype(float), together)
    stages, lengths = [groups], [stage.length(alpha)]
    while len(stage.groups) > 1:
        costs, pairs = stage.merge_costs(alpha)
        stage = stage.merged(*pairs[_pick(costs, gamma, rng)])
        stages.append(stage.groups)
        lengths.append(stage.length(alpha))
    owner = np.full(on.shape[1], -1)
    for number, members in enumerate(stages[int(np.argmin(lengths))]):
        owner[members] = number
    alone = np.flatnonzero(owner < 0)
    owner[alone] = owner.max() + 1 + np.arange(len(alone))
    return Clustering(owner, np.asarray(lengths))


@dataclasses.dataclass(frozen=True)
class _Stage:
    """The clusters after some merges: their members and ranks, on which rows each is on, on how many, and on how many
    two are on together."""

    groups: list[list[int]]
    rank: Float[np.ndarray, " cluster"]
    active: Bool[np.ndarray, "cluster row"]
    counts: Float[np.ndarray, " cluster"]
    together: Float[np.ndarray, "cluster cluster"]

    def length(self, alpha: float) -> float:
        """The description length."""
        return float((self.counts * (math.log2(len(self.counts)) + alpha * self.rank)).sum())

    def merge_costs(self, alpha: float) -> tuple[Float[np.ndarray, " pair"], Int[np.ndarray, "pair two"]]:
        """The cost of merging each pair, and the pairs."""
        i, j = np.tril_indices(len(self.groups), -1)
        counts, rank = self.counts, self.rank
        either = counts[i] + counts[j] - self.together[i, j]
        costs = merge_cost(counts[i], counts[j], either, counts.sum(), len(self.groups), rank[i], rank[j], alpha)
        return costs, np.stack([i, j], axis=1)

    def merged(self, i: int, j: int) -> _Stage:
        """The stage after merging clusters i and j, which become the last one."""
        rest = np.delete(np.arange(len(self.groups)), (i, j))
        both = self.active[i] | self.active[j]
        shared = np.count_nonzero(self.active[rest] & both[None], axis=1)
        counts, together = np.append(self.counts[rest], both.sum()), self.together[np.ix_(rest, rest)]
        return _Stage(
            [self.groups[n] for n in rest] + [self.groups[i] + self.groups[j]],
            np.append(self.rank[rest], self.rank[i] + self.rank[j]),
            np.concatenate([self.active[rest], both[None]]),
            counts,
            np.block([[together, shared[:, None]], [shared[None], counts[-1:, None]]]),
        )


def _pick(costs: np.ndarray, gamma: float | None, rng: np.random.Generator) -> int:
    if gamma is None:
        return int(np.argmin(costs))
    place = int(-math.log(1 - rng.random() * (1 - math.exp(-gamma * len(costs)))) / gamma)
    return int(np.argsort(costs, kind="stable")[min(place, len(costs) - 1)])
