"""Clusters of components that are important together, by minimum description length (VPD 2026).

    L = Σ_i s_i (log2 k + α r_i)

Here k is the number of clusters, s_i the number of rows on which cluster i is on, and r_i the rank of cluster i. If two
clusters are on together, merging them saves the bits that name one of them. On a row where only one of the two is on,
merging adds the rank of the other one. The greedy algorithm merges until one cluster is left. It returns the stage with
the shortest description.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError

Numbers = TypeVar("Numbers", float, np.ndarray)  # one merge, or an array of merges


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
      on: True where a component is on.
      owner: the cluster of each component.
      alpha: the weight of ranks.
      ranks: the rank of each component; None: every rank is 1.
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
    """The change of the description length when clusters i and j are merged. Takes numbers, or arrays for many merges.

    Args:
      s_i, s_j: the number of rows on which each cluster is on.
      s_both: the number of rows on which at least one of the two is on.
      total: Σ s over all clusters.
      k: the number of clusters.
      r_i, r_j: the rank of each cluster.
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
    """Merge the cheapest pair of clusters until one cluster is left, and return the best stage.

    The cost is cubic in the number of components: 500 components take seconds.

    Args:
      importance: lower importances on a dataset.
      alpha: the weight of ranks.
      threshold: a component is on where its importance is above this.
      ranks: the rank of each component; None: every rank is 1.
      gamma: None: always merge the cheapest pair. Otherwise the pair at place J of the order is merged with a
        probability proportional to e^(-γ J) (VPD: 0.2). Compare several seeds to see which clusters are stable.
      seed: the seed of these random choices.

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
    """The clusters after some merges.

    groups: the components in each cluster.
    rank: the rank of each cluster.
    active: the rows on which each cluster is on.
    counts: the number of these rows.
    together: the number of rows on which two clusters are both on.
    """

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
