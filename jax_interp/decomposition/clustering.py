"""Clusters of subcomponents that fire together, by minimum description length (VPD 2026; after SPD's clustering).

    L = Σ_i s_i (log2 k + α r_i)        s_i rows on which cluster i is on, r_i its rank, k clusters

Merging two clusters that are on together saves naming both; where one is on without the other it costs the other's
rank. The greedy run goes on to one cluster and is cut where its description was shortest.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.errors import UserError


@dataclasses.dataclass(frozen=True)
class Clustering:
    """`owner[c]` is the cluster of component c where the description was shortest; `lengths` its length, in bits over
    all rows, after each merge (the first entry: none)."""

    owner: Int[np.ndarray, " component"]
    lengths: Float[np.ndarray, " merges"]


def description_length(
    on: Bool[np.ndarray, "row component"],
    owner: Int[np.ndarray, " component"],
    alpha: float,
    ranks: np.ndarray | None = None,
) -> float:
    """`Σ_i s_i (log2 k + α r_i)`, a cluster being on where any of its components is."""
    ranks = np.ones(on.shape[1]) if ranks is None else np.asarray(ranks, float)
    groups = np.unique(owner)
    return float(
        sum(
            on[:, owner == i].any(axis=1).sum() * (math.log2(len(groups)) + alpha * ranks[owner == i].sum())
            for i in groups
        )
    )


def merge_cost(
    s_i: float, s_j: float, s_both: float, total: float, k: int, r_i: float, r_j: float, alpha: float
) -> float:
    """How much longer the description gets by a merge. `s_both` counts rows on which either is on, `total` is Σ s."""
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
    """Merge clusters two by two down to one, each time the pair that costs least, and keep the best of all stages.

    With `gamma` the pair of rank J among the candidates is taken with probability proportional to e^(-γ J) (VPD has
    .2): several seeds then tell which clusters are stable. Components that are never on stay alone and cost nothing.
    Cost: components³ in all, counts by matrix products.
    """
    on = np.asarray(importance) > threshold
    if on.ndim != 2:
        raise UserError(f"importances to cluster by are [row, component], got shape {on.shape}")
    rng = np.random.default_rng(seed)
    groups = [[c] for c in range(on.shape[1]) if on[:, c].any()]
    if not groups:
        raise UserError(f"no component is ever above the threshold {threshold}")
    rank = [1.0 if ranks is None else float(ranks[c[0]]) for c in groups]
    active = on[:, [c[0] for c in groups]].copy()
    stages, lengths = [list(groups)], [_length(active, rank, alpha)]
    while len(groups) > 1:
        counts = active.sum(axis=0).astype(float)
        together = active.T.astype(np.float32) @ active.astype(np.float32)
        k, total = len(groups), counts.sum()
        pairs = [(i, j) for i in range(k) for j in range(i)]
        costs = np.array([
            merge_cost(counts[i], counts[j], counts[i] + counts[j] - together[i, j], total, k, rank[i], rank[j], alpha)
            for i, j in pairs
        ])  # fmt: skip
        i, j = pairs[_pick(costs, gamma, rng)]
        groups = [g for n, g in enumerate(groups) if n not in (i, j)] + [groups[i] + groups[j]]
        rank = [r for n, r in enumerate(rank) if n not in (i, j)] + [rank[i] + rank[j]]
        merged = active[:, i] | active[:, j]
        active = np.concatenate([np.delete(active, (i, j), axis=1), merged[:, None]], axis=1)
        stages.append(list(groups))
        lengths.append(_length(active, rank, alpha))
    owner = np.full(on.shape[1], -1)
    for number, members in enumerate(stages[int(np.argmin(lengths))]):
        owner[members] = number
    alone = np.flatnonzero(owner < 0)
    owner[alone] = owner.max() + 1 + np.arange(len(alone))
    return Clustering(owner, np.asarray(lengths))


def _length(active: np.ndarray, rank: list[float], alpha: float) -> float:
    counts = active.sum(axis=0)
    return float((counts * (math.log2(active.shape[1]) + alpha * np.asarray(rank))).sum())


def _pick(costs: np.ndarray, gamma: float | None, rng: np.random.Generator) -> int:
    if gamma is None:
        return int(np.argmin(costs))
    place = int(-math.log(1 - rng.random() * (1 - math.exp(-gamma * len(costs)))) / gamma)
    return int(np.argsort(costs, kind="stable")[min(place, len(costs) - 1)])
