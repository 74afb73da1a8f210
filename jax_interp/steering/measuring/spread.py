"""Figures with their spread: a mean never stands alone.

Intervals are bootstrap intervals over groups, because copies of one question are not independent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, interval, resampling_weights

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean with its interval, and how far the single samples lie apart.

    Args:
      n: the number of samples.
      groups: the number of independent groups of samples.
      mean: the mean. Its interval is NaN if there are less than two groups.
      sd: the standard deviation of the samples (their sum of squares is divided by n).
      quantiles: the quantiles `QUANTILES` of the samples: 5 %, 25 %, 50 %, 75 % and 95 %.
    """

    n: int
    groups: int
    mean: Estimate
    sd: float
    quantiles: tuple[float, ...]

    def __str__(self) -> str:
        low, high = self.quantiles[0], self.quantiles[-1]
        return f"{self.mean} (sd {self.sd:.3f}, 90 % of samples {low:.3f} to {high:.3f}, n {self.n})"


def spread(
    values: Float[np.ndarray, " sample"], groups: Int[np.ndarray, " sample"] | None = None, *, seed: int = 0
) -> Spread:
    """The spread of some samples.

    Args:
      values: the samples. None of them, or finite ones.
      groups: the number of the group of each sample. None: each sample is independent.
      seed: the seed of the bootstrap.

    Returns:
      The spread. Without samples, its figures are NaN.

    Raises:
      UserError: a sample is not finite.
    """
    values = np.asarray(values, np.float64)
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if not np.isfinite(values).all():
        raise UserError(f"sample {int(np.argmin(np.isfinite(values)))} is not finite")
    if not len(values):
        nothing = float("nan")
        return Spread(0, 0, Estimate(nothing, nothing, nothing), nothing, (nothing,) * len(QUANTILES))
    quantiles = tuple(np.quantile(values, QUANTILES).tolist())
    count = len(np.unique(groups))
    return Spread(len(values), count, mean_of(values, groups, seed=seed), float(values.std()), quantiles)


def mean_of(values: np.ndarray, groups: Int[np.ndarray, " sample"], *, seed: int = 0) -> Estimate:
    """The mean of samples, or the share of True ones, with its interval over groups."""
    columns = np.stack([np.ones(len(values)), np.asarray(values, np.float64)], axis=1)
    return of_totals(columns, groups, lambda totals: totals[:, 1] / totals[:, 0], seed=seed)


def of_totals(
    columns: Float[np.ndarray, "sample k"],
    groups: Int[np.ndarray, " sample"],
    statistic: Callable[[Float[np.ndarray, "draw k"]], Float[np.ndarray, " draw"]],
    *,
    seed: int = 0,
) -> Estimate:
    """A function of weighted sums over samples, with its bootstrap interval over groups.

    Args:
      columns: what is summed.
      groups: the number of the group of each sample. A draw takes whole groups.
      statistic: from the sums of `columns` in each draw to one number. It must not change if all sums are multiplied by
        one number.
      seed: the seed of the draws.

    Returns:
      The estimate. Its interval is NaN if there are less than two groups.
    """
    _, number = np.unique(groups, return_inverse=True)
    totals = np.zeros((int(number.max()) + 1, columns.shape[1]))
    np.add.at(totals, number, columns)
    value = float(statistic(totals.sum(axis=0, keepdims=True))[0])
    if len(totals) < 2:
        return Estimate(value, float("nan"), float("nan"))
    return interval(value, statistic(resampling_weights(len(totals), seed=seed) @ totals))
