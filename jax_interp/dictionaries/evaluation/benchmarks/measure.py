"""An estimate with its interval, and a measure of a dictionary beside its baselines.

Two kinds of intervals are in use, and each estimate says which one it has:

    bootstrap    of means over examples: splits are drawn again with replacement, and examples within each split
    t            of figures that are computed once for each reseed: Student's t over the reseeds

Intervals have a level of 95 %. They say nothing about other models, other texts or other data sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError

DICTIONARY = "dictionary"
RANDOM = "random"
REPLICATES = 1000
"""Replicates of the bootstrap."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its interval of 95 %. NaN where it is not defined."""

    value: float
    low: float
    high: float
    over: str
    """What the interval is over, such as "3 splits and 150 test texts of each of 113 data sets"."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """One figure of a dictionary and of its baselines."""

    name: str
    meaning: str
    """What it means, in one line."""
    better: Literal["higher", "lower"]
    estimates: Mapping[str, Estimate]
    """By coder. The dictionary comes first."""
    gain: Estimate | None = None
    """The dictionary minus the random dictionary, compared example by example. None: it was not measured in pairs."""
    warning: str = ""
    """Why the figure must be read with care: how unreliable it was found to be, and by whom."""
    spread: float | None = None
    """The standard deviation of the dictionary's figure over reseeds, divided by the |mean|, as measured here. None: it
    was not measured."""

    def better_than_random(self) -> Literal["yes", "no", "unclear"] | None:
        """Whether the dictionary is better than a random one, as far as the intervals tell. None: there is no random
        one to compare with.

        "yes" and "no": the interval of the gain is on one side of 0, or, without pairs, the two intervals have no point
        in common. Otherwise, and where an interval is not defined, "unclear".
        """
        if DICTIONARY not in self.estimates or RANDOM not in self.estimates:
            return None
        if self.gain is not None:
            low, high = self.gain.low, self.gain.high
        else:
            own, random = self.estimates[DICTIONARY], self.estimates[RANDOM]
            low, high = own.low - random.high, own.high - random.low
        if self.better == "lower":
            low, high = -high, -low
        return "yes" if low > 0 else "no" if high < 0 else "unclear"

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self) | {"better_than_random": self.better_than_random()}


def mean_over_examples(
    hits: Sequence[Sequence[Float[np.ndarray, " example"]]], over: str, *, seed: int = 0, level: float = 0.95
) -> Estimate:
    """The mean over data sets of the mean over splits of the mean over examples, with a bootstrap interval.

    A replicate draws, in each data set, as many splits as there are, with replacement, and in each of them as many
    examples as there are. Data sets are not drawn again: the figure is about these data sets.

    Args:
      hits: [data set][split] -> a value for each test example, such as 1 where the prediction is right.
      over: what the interval is over, in words.
      seed: of the bootstrap.
      level: of the interval.

    Raises:
      UserError: there is no data set, or a split has no example.
    """
    if not hits or any(not of_data or any(not len(x) for x in of_data) for of_data in hits):
        raise UserError("an interval over examples needs at least one data set, and examples in each split")
    rng = np.random.default_rng(seed)
    replicates = np.zeros(REPLICATES)
    for of_data in hits:
        values = [np.unique(np.asarray(x, np.float64), return_counts=True) for x in of_data]
        chosen = rng.integers(len(values), size=(REPLICATES, len(values)))
        for split, (levels, counts) in enumerate(values):
            times = (chosen == split).sum(axis=1)
            n = counts.sum()
            # The mean of n draws with replacement: the counts of the distinct values are multinomial.
            draws = rng.multinomial(n * times, counts / n)
            replicates += draws @ levels / (n * len(values))
    replicates /= len(hits)
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    value = float(np.mean([np.mean([np.mean(x) for x in of_data]) for of_data in hits]))
    return Estimate(value, float(low), float(high), over)


def mean_over_reseeds(values: Sequence[float], what: str = "reseeds", level: float = 0.95) -> Estimate:
    """The mean of a figure over reseeds, with Student's t interval. One reseed has no interval: its ends are NaN.

    Args:
      values: the figure of each reseed.
      what: what a reseed is, in words.
      level: of the interval.
    """
    from scipy import stats

    x = np.asarray(values, np.float64)
    mean = float(x.mean()) if x.size else float("nan")
    half = float("nan")
    if x.size > 1:
        half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / np.sqrt(x.size))
    return Estimate(mean, mean - half, mean + half, f"{x.size} {what}")


def relative_spread(values: Sequence[float]) -> float:
    """The standard deviation over reseeds divided by the |mean|. NaN for fewer than two reseeds or a mean of 0."""
    x = np.asarray(values, np.float64)
    if x.size < 2 or not x.mean():
        return float("nan")
    return float(x.std(ddof=1) / abs(x.mean()))
