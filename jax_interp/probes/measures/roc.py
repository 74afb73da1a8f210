"""AUROC and the ROC curve, with intervals.

    auroc(scores, positive)                            scores [..., example]: one AUROC for each row
    auroc_interval(scores, positive)                   DeLong
    auroc_interval(scores, positive, groups)           where examples of one group belong together
    auroc_difference(a, b, positive, groups)           of two scores on the same examples

AUROC is the probability that a positive example has a higher score than a negative one, where equal scores count half.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
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
) -> Estimate:
    """An AUROC with its interval, cut to [0, 1].

    Without groups it is that of DeLong, DeLong & Clarke-Pearson (1988). With groups it is that of Obuchowski (1997,
    Biometrics 53:567), which counts whole groups as independent and is DeLong's if each group has one example. Where
    the variance is 0 (an AUROC of 0 or 1) it is Newcombe's interval with the numbers of groups.

    Args:
      scores: a score for each example.
      positive: whether each example is positive.
      groups: the group of each example, such as a pair of a statement and its negation. None: examples are independent.
      level: the coverage.

    Raises:
      UserError: as `auroc`.
    """
    values, truth = checked(scores, positive)
    groups = _numbered(groups, truth)
    value = float(auroc(values, truth))
    half = _half_width(_placements(values, truth), truth, groups, level)
    if half < 1e-12:
        return newcombe(value, *_groups_of_classes(truth, groups), level=level)
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0))


def auroc_difference(
    first: Float[np.ndarray | Array, " example"],
    second: Float[np.ndarray | Array, " example"],
    positive: Bool[np.ndarray, " example"],
    groups: Int[np.ndarray, " example"] | None = None,
    *,
    level: float = 0.95,
) -> Estimate:
    """AUROC of the first scores minus that of the second, on the same examples, so that what they share cancels.

    Where the variance is 0 but the scores differ (both AUROCs are 1), the ends are those of two single intervals.
    Args and Raises as in `auroc_interval`.
    """
    (a, truth), (b, _) = checked(first, positive), checked(second, positive)
    groups = _numbered(groups, truth)
    placed = [_placements(values, truth) for values in (a, b)]
    value = float(auroc(a, truth) - auroc(b, truth))
    half = _half_width(placed[0] - placed[1], truth, groups, level)
    order = [np.unique(values, return_inverse=True)[1] for values in (a, b)]
    if half < 1e-12 and (order[0] != order[1]).any():
        alone = [auroc_interval(values, truth, groups, level=level) for values in (a, b)]
        return Estimate(value, alone[0].low - alone[1].high, alone[0].high - alone[1].low)
    return Estimate(value, value - half, value + half)


def _numbered(groups: Int[np.ndarray, " example"] | None, truth: np.ndarray) -> Int[np.ndarray, " example"]:
    if groups is None:
        return np.arange(truth.size)
    if np.shape(groups) != truth.shape:
        raise UserError(f"{np.size(groups)} groups for {truth.size} examples: give one group for each example")
    return np.unique(groups, return_inverse=True)[1]


def _placements(values: np.ndarray, truth: np.ndarray) -> Float[np.ndarray, " example"]:
    """For a positive example the share of negative ones below it, for a negative one the share of positive ones above
    it. Equal values count half. The mean over either class is the AUROC."""
    from scipy.stats import rankdata

    below = rankdata(values)
    below[truth] -= rankdata(values[truth])
    below[~truth] -= rankdata(values[~truth])
    n1, n0 = truth.sum(), (~truth).sum()
    return np.where(truth, below / n0, 1 - below / n1)


def _half_width(placed: np.ndarray, truth: np.ndarray, groups: np.ndarray, level: float) -> float:
    """Half the width of the normal interval for the mean placement (of a class with one group: without its part)."""
    from scipy.special import ndtri

    deviation, variance = np.empty((2, groups.max() + 1)), 0.0
    for number, side in enumerate((truth, ~truth)):
        n = side.sum()
        deviation[number] = np.bincount(groups, (placed - placed[side].mean()) * side, len(deviation[0])) / n
    counts = (*_groups_of_classes(truth, groups), len(deviation[0]))
    products = (deviation[0] @ deviation[0], deviation[1] @ deviation[1], 2 * deviation[0] @ deviation[1])
    for product, count in zip(products, counts):
        variance += product * count / (count - 1) if count > 1 else 0.0
    return float(ndtri((1 + level) / 2) * np.sqrt(max(variance, 0.0)))


def _groups_of_classes(truth: np.ndarray, groups: np.ndarray) -> tuple[int, int]:
    """The number of groups with positive, and with negative examples."""
    return len(np.unique(groups[truth])), len(np.unique(groups[~truth]))
