"""Intervals of shares and of AUROC that stay right when the share is 0 or 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate


def clopper_pearson(hits: int, trials: int, level: float = 0.95) -> Estimate:
    """A share with its exact binomial interval (Clopper & Pearson 1934). It covers the true share at least at `level`.

    Args:
      hits: how often it happened.
      trials: how often it could have happened. The trials must be independent.
      level: the coverage.

    Raises:
      UserError: there is no trial, or hits are not between 0 and trials.
    """
    if trials < 1 or not 0 <= hits <= trials:
        raise UserError(f"{hits} hits of {trials} trials: give at least one trial, and hits between 0 and the trials")
    from scipy.stats import beta  # JAX requires scipy, so it is installed

    tail = (1 - level) / 2
    low = beta.ppf(tail, hits, trials - hits + 1) if hits else 0.0
    high = beta.ppf(1 - tail, hits + 1, trials - hits) if hits < trials else 1.0
    return Estimate(hits / trials, float(low), float(high))


def share_interval(
    hits: Bool[np.ndarray, " example"], groups: Int[np.ndarray, " example"] | None = None, level: float = 0.95
) -> Estimate:
    """The share of examples for which something holds, with an interval that counts whole groups as independent.

    If each group has one example, it is Clopper-Pearson's. Else it is a normal interval whose variance is that of the
    sums of groups, cut to [0, 1]; where this variance is 0, it is Clopper-Pearson's with the number of groups.

    Args:
      hits: whether it holds for each example.
      groups: the group of each example. None: examples are independent.
      level: the coverage.
    """
    hits = np.asarray(hits, bool)
    of = np.arange(hits.size) if groups is None else np.asarray(groups)
    if not hits.size or of.shape != hits.shape:
        raise UserError(f"{hits.size} examples and {of.size} groups: give at least one example, and the group of each")
    group = np.unique(of, return_inverse=True)[1]
    n = int(group.max()) + 1
    if n == hits.size:
        return clopper_pearson(int(hits.sum()), n, level)
    from scipy.special import ndtri

    value = float(hits.mean())
    deviation = np.bincount(group, hits - value) / hits.size
    half = float(ndtri((1 + level) / 2) * np.sqrt(deviation @ deviation * n / (n - 1))) if n > 1 else 0.0
    if half < 1e-12:
        ends = clopper_pearson(round(value * n), n, level)
        return Estimate(value, min(ends.low, value), max(ends.high, value))
    return Estimate(value, max(value - half, 0.0), min(value + half, 1.0))


def newcombe(auroc: float, positives: int, negatives: int, level: float = 0.95) -> Estimate:
    """An AUROC with the score interval of Newcombe (2006, Statistics in Medicine 25:559, method 5).

    It solves |θ - AUROC| = z √V(θ) for θ, where V is the variance of Hanley & McNeil (1982). It is not empty at
    AUROC = 0 and 1, where DeLong's interval and the bootstrap have width 0.

    Args:
      auroc: the measured AUROC.
      positives: the number of positive examples.
      negatives: the number of negative examples.
      level: the coverage.
    """
    if positives < 1 or negatives < 1:
        raise UserError(
            f"an AUROC needs both classes: there are {positives} positive and {negatives} negative examples"
        )
    from scipy.special import ndtri

    z, half = ndtri((1 + level) / 2), (positives + negatives) / 2 - 1

    def deviation(theta: float) -> float:
        more = 1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta)
        return float(z * np.sqrt(theta * (1 - theta) * more / (positives * negatives)))

    high = _last(lambda t: t - auroc <= deviation(t), auroc, 1.0)
    low = 1 - _last(lambda t: auroc - (1 - t) <= deviation(1 - t), 1 - auroc, 1.0)
    return Estimate(float(auroc), low, high)


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number in [low, high] for which something holds that holds at `low` and up to one point."""
    if holds(high):
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
