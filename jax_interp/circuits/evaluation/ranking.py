"""How well scores find a known circuit: ROC and AUC, for edges and nodes, beside the scores of chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Bool, Float
from scipy import stats

from jax_interp.circuits.discovery.selection import MIB_FRACTIONS, checked_scores, first, ranked
from jax_interp.circuits.discovery.units import EdgeUnits
from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, interval
from jax_interp.probes.measures import auroc


@dataclasses.dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve.

    Args:
      false_positive: the share of the other units with at least this score.
      true_positive: the share of the circuit's units with at least this score.
      auc: the area under the curve: the probability that a unit of the circuit has a higher score than another one,
        where equal scores count half.
      chance: the AUC of random scores, with the interval of its spread. It is wide if the circuit is small.
      first: the share of the circuit among the first k units, where k is the size of the circuit (R-precision).
    """

    false_positive: Float[np.ndarray, " threshold"]
    true_positive: Float[np.ndarray, " threshold"]
    auc: float
    chance: Estimate
    first: float

    def __str__(self) -> str:
        return f"AUC {self.auc:.3f} (chance {self.chance}), {self.first:.0%} of the circuit among the first k"


def roc(scores: Float[np.ndarray | Array, "..."], known: Bool[np.ndarray, "..."]) -> Roc:
    """Compare scores with a known circuit.

    Args:
      scores: a score for each unit. A high one says that the unit is in the circuit; give |score| where the sign says
        something else. Infinite scores are allowed, NaN is not.
      known: whether each unit is in the known circuit.

    Raises:
      UserError: the shapes differ, a score is NaN, or the circuit has no unit or all.
    """
    values, truth = np.asarray(scores, float).reshape(-1), np.asarray(known, bool).reshape(-1)
    if np.shape(scores) != np.shape(known):
        raise UserError(f"the scores have shape {np.shape(scores)} and the circuit {np.shape(known)}")
    if np.isnan(values).any():
        raise UserError(f"{int(np.isnan(values).sum())} of {values.size} scores are NaN")
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise UserError(f"the known circuit has {positives} of {truth.size} units: a ROC needs some in it and some not")
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.nonzero(np.diff(values[order]))[0], truth.size - 1)
    hits, misses = (np.append(0, np.cumsum(kind[order])[ends]) for kind in (truth, ~truth))
    rng = np.random.default_rng(0)
    chance = auroc(rng.random((200, truth.size)), truth)
    by_rank = stats.rankdata(-values, method="max")
    return Roc(
        misses / negatives, hits / positives, float(auroc(values, truth)), interval(0.5, chance),
        float(((by_rank <= positives) & truth).sum() / positives),
    )  # fmt: skip


def node_scores(units: EdgeUnits, scores: Float[np.ndarray | Array, " unit"]) -> Float[np.ndarray, " source"]:
    """A score for each node: the largest |score| of the edges that go out of it (as ACDC judges nodes)."""
    matrix = units.matrix(np.abs(checked_scores(units, scores)))
    return matrix.max(axis=0)


def known_nodes(units: EdgeUnits, known: Bool[np.ndarray, " unit"]) -> Bool[np.ndarray, " source"]:
    """Whether each node has an edge of the known circuit going out of it."""
    return np.any(units.matrix(np.asarray(known, bool)), axis=0)


def mib_auroc(
    units: EdgeUnits,
    scores: Float[np.ndarray | Array, " unit"],
    known: Bool[np.ndarray, " unit"],
    fractions: Sequence[float] = MIB_FRACTIONS,
) -> float:
    """MIB's AUROC on InterpBench: greedy circuits of ten sizes, each compared with the known circuit.

    The area is taken between the ten points alone, over false-positive rates that are divided by the last one
    (`evaluate_area_under_roc`, `area_under_curve` of MIB-circuit-track). It differs from `roc(...).auc`: a method that
    finds the whole circuit within the first of the ten sizes misses the area to the left of it.
    """
    truth = np.asarray(known, bool)
    sizes = np.ceil(np.asarray(fractions) * len(units)).astype(int)
    kept = units.pruned(first(ranked(units, scores, "greedy"), sizes))
    true, false = (kept & truth).sum(axis=1) / truth.sum(), (kept & ~truth).sum(axis=1) / (~truth).sum()
    return float(np.trapezoid(true, false / false[-1]))
