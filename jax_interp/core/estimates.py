"""Intervals: a figure with the spread that another draw of the examples would give it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure and an interval.

    Args:
      value: the figure.
      low: the lower end of the interval.
      high: the upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def resampling_weights(examples: int, draws: int = 1000, seed: int = 0) -> Float[np.ndarray, "draw example"]:
    """Weights of the bootstrap: each row is the share of each example in one sample with replacement."""
    if examples < 2:
        raise UserError(f"an interval needs at least two examples, there is {examples}")
    rng = np.random.default_rng(seed)
    return rng.multinomial(examples, np.full(examples, 1 / examples), size=draws) / examples


def estimate(
    statistic: Callable[[Float[np.ndarray, "draw example"]], Float[np.ndarray, " draw"]],
    examples: int,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic with its percentile bootstrap interval over examples (Efron 1979).

    Args:
      statistic: from weights of the examples, each row with the sum 1, to one number a row.
      examples: the number of examples.
      level: the share of the draws that lies in the interval.
      draws: the number of bootstrap samples.
      seed: the seed of the samples.
    """
    value = float(statistic(np.full((1, examples), 1 / examples))[0])
    drawn = statistic(resampling_weights(examples, draws, seed))
    return interval(value, drawn, level)


def interval(value: float, drawn: Float[np.ndarray, " draw"], level: float = 0.95) -> Estimate:
    """A value with the central interval of drawn values. Draws that are not finite make the interval NaN."""
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if np.isfinite(drawn).all() else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))
