"""AUROC and the ROC curve, with intervals.

    auroc(scores, positive)                            scores [..., example]: one AUROC for each row
    auroc_interval(scores, positive)                   DeLong
    auroc_interval(scores, positive, groups=groups)    bootstrap over groups of examples that belong together
    auroc_difference(a, b, positive, groups=groups)    of two scores on the same examples

AUROC is the probability that a positive example has a higher score than a negative one, where equal scores count half.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, interval
from jax_interp.probes.measures.intervals import newcombe


def auroc(scores: Float[np.ndarray | Array, "*row example"], positive: Bool[np.ndarray, " example"]) -> np.ndarray:
    """The AUROC of each row of scores: (Σ ranks of positives - n₁(n₁+1)/2) / (n₁ n₀), ties with their average rank.

    Args:
      scores: a score for each example. Infinite scores are allowed, NaN is not.
      positive: whether each example is positive.

    Returns:
      `[*row]`, a 0-d array for one row.

    Raises:
      UserError: a score is NaN, the shapes differ, or there is one class only.
    """
    from scipy.stats import rankdata  # JAX requires scipy, so it is installed

    values, truth = checked(scores, positive)
    n1, n0 = int(truth.sum()), int((~truth).sum())
    ranks = rankdata(values, axis=-1)[..., truth].sum(axis=-1)
    return np.asarray((ranks - n1 * (n1 + 1) / 2) / (n1 * n0))


def checked(
    scores: Float[np.ndarray | Array, "*row example"], positive: Bool[np.ndarray, " example"]
) -> tuple[Float[np.ndarray, "*row example"], Bool[np.ndarray, " example"]]:
    """Scores in float64, and labels. Raises as `auroc`."""
    values, truth = np.asarray(scores, np.float64), np.asarray(positive)
    if truth.dtype != bool and not np.isin(truth, (0, 1)).all():
        raise UserError("`positive` says whether each example is positive: give booleans, or 0 and 1")
    truth = truth.astype(bool)
    if truth.ndim != 1 or values.shape[-1:] != truth.shape:
        raise UserError(f"the scores have shape {values.shape}, and there are labels of shape {truth.shape}")
    if np.isnan(values).any():
        raise UserError(f"{int(np.isnan(values).sum())} of {values.size} scores are NaN")
    if truth.all() or not truth.any():
        raise UserError(f"{int(truth.sum())} of {truth.size} examples are positive: an AUROC needs both classes")
    return values, truth


@dataclasses.dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve. Entry i says what happens if scores of at least `thresholds[i]` count as positive.

    Args:
      thresholds: from high to low. The first one is infinite: nothing counts as positive.
      false_positive: the share of negative examples that count as positive.
      true_positive: the share of positive examples that count as positive.
    """

    thresholds: Float[np.ndarray, " threshold"]
    false_positive: Float[np.ndarray, " threshold"]
    true_positive: Float[np.ndarray, " threshold"]

    @property
    def area(self) -> float:
        """The area under the curve (trapezoids), which is the AUROC."""
        return float(np.trapezoid(self.true_positive, self.false_positive))

    def to_json(self) -> dict[str, list[float]]:
        """The two shares. Thresholds are left out: the first one is infinite."""
        return {"false_positive": self.false_positive.tolist(), "true_positive": self.true_positive.tolist()}


def roc_curve(scores: Float[np.ndarray | Array, " example"], positive: Bool[np.ndarray, " example"]) -> Roc:
    """The ROC curve: one point for each distinct score. Raises as `auroc`."""
    values, truth = checked(scores, positive)
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), truth.size - 1)
    hits, misses = (np.append(0, np.cumsum(kind[order])[ends]) for kind in (truth, ~truth))
    return Roc(np.append(np.inf, values[order][ends]), misses / (~truth).sum(), hits / truth.sum())


def auroc_interval(
    scores: Float[np.ndarray | Array, " example"],
    positive: Bool[np.ndarray, " example"],
    groups: Int[np.ndarray, " example"] | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """An AUROC with its interval.

    Without groups: DeLong, DeLong & Clarke-Pearson (1988), cut to [0, 1]. With groups: percentiles of a bootstrap over
    groups, within strata of groups with positive, negative and both kinds of examples. Where all draws are equal (an
    AUROC of 0 or 1), it is Newcombe's interval, which counts groups in place of examples.

    Args:
      scores: a score for each example.
      positive: whether each example is positive.
      groups: the group of each example, such as a pair of a statement and its negation. None: examples are independent.
      level: the coverage.
      draws: the number of bootstrap samples.
      seed: the seed of the samples.

    Raises:
      UserError: as `auroc`.
    """
    values, truth = checked(scores, positive)
    value = float(auroc(values, truth))
    if groups is None:
        found = _delong(values, truth, value, level)
        counts = int(truth.sum()), int((~truth).sum())
    else:
        weights, counts = _group_weights(np.asarray(groups), truth, draws, seed)
        found = interval(value, _weighted(values, truth, weights), level)
    return newcombe(value, *counts, level=level) if found.high - found.low < 1e-12 else found


def auroc_difference(
    first: Float[np.ndarray | Array, " example"],
    second: Float[np.ndarray | Array, " example"],
    positive: Bool[np.ndarray, " example"],
    groups: Int[np.ndarray, " example"] | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """AUROC of the first scores minus that of the second, on the same examples, with a paired bootstrap over groups.

    Args and Raises as in `auroc_interval`.
    """
    (a, truth), (b, _) = checked(first, positive), checked(second, positive)
    groups = np.arange(truth.size) if groups is None else np.asarray(groups)
    weights, _ = _group_weights(groups, truth, draws, seed)
    drawn = _weighted(a, truth, weights) - _weighted(b, truth, weights)
    return interval(float(auroc(a, truth) - auroc(b, truth)), drawn, level)


def _delong(values: np.ndarray, truth: np.ndarray, value: float, level: float) -> Estimate:
    from scipy.special import ndtri
    from scipy.stats import rankdata

    def placements(of: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The share of the others below each value, where equal ones count half."""
        both = rankdata(np.concatenate([of, others]))[: of.size]
        return (both - rankdata(of)) / others.size

    positive, negative = values[truth], values[~truth]
    spread = lambda v: v.var(ddof=1) / v.size if v.size > 1 else 0.0
    deviation = np.sqrt(spread(placements(positive, negative)) + spread(placements(negative, positive)))
    half = ndtri((1 + level) / 2) * deviation
    return Estimate(value, float(max(value - half, 0.0)), float(min(value + half, 1.0)))


def _group_weights(
    groups: Int[np.ndarray, " example"], truth: Bool[np.ndarray, " example"], draws: int, seed: int
) -> tuple[Int[np.ndarray, "draw example"], tuple[int, int]]:
    """(how often each draw has each example, the number of groups with positive and with negative examples)."""
    if groups.shape != truth.shape:
        raise UserError(f"{groups.size} groups for {truth.size} examples: give one group for each example")
    names, group = np.unique(groups, return_inverse=True)
    has = np.stack([np.bincount(group, kind, minlength=names.size) > 0 for kind in (truth, ~truth)])
    rng, weights = np.random.default_rng(seed), np.zeros((draws, names.size), np.int64)
    for stratum in ((True, False), (False, True), (True, True)):
        members = (np.array(stratum) == has.T).all(axis=1)
        if size := int(members.sum()):
            weights[:, members] = rng.multinomial(size, np.full(size, 1 / size), size=draws)
    return weights[:, group], (int(has[0].sum()), int(has[1].sum()))


def _weighted(values: np.ndarray, truth: np.ndarray, weights: Int[np.ndarray, "draw example"]) -> np.ndarray:
    """The AUROC of each draw."""
    order = np.argsort(values, kind="stable")
    starts = np.append(0, np.flatnonzero(np.diff(values[order])) + 1)
    positive, negative = (np.add.reduceat((weights * kind)[:, order], starts, axis=1) for kind in (truth, ~truth))
    below = np.cumsum(negative, axis=1) - negative / 2
    return (positive * below).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))
