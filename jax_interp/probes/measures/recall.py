"""Recall at a rate of false alarms: the threshold comes from a separate set of benign examples.

    threshold_at_fpr(control, 0.01)                  the 99th percentile of the control scores
    recall_at_fpr(positive, control, 0.01)           the share of positive scores above it, with two intervals

A small control set cannot say where the threshold is: 1 % of 100 scores is one score. The result says so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, interval
from jax_interp.probes.measures.intervals import clopper_pearson

ENOUGH = 10
"""The number of control scores above the threshold from which on the threshold counts as resolved."""


@dataclasses.dataclass(frozen=True)
class RecallAtFpr:
    """The share of positive examples above a threshold that few control examples pass.

    Args:
      fpr: the rate of false alarms that was asked for.
      threshold: the threshold, with the bootstrap interval over control examples.
      recall: the share of positive scores above the threshold, with the Clopper-Pearson interval. This interval takes
        the threshold as given.
      recall_with_threshold: the same share, with a bootstrap interval over positive and control examples.
      control_fpr: the share of control scores above the threshold, with the Clopper-Pearson interval.
      controls: the number of control scores.
    """

    fpr: float
    threshold: Estimate
    recall: Estimate
    recall_with_threshold: Estimate
    control_fpr: Estimate
    controls: int

    @property
    def resolved(self) -> bool:
        """Whether at least `ENOUGH` control scores are expected above the threshold. If not, another control set may
        give quite another threshold: look at `recall_with_threshold`."""
        return self.controls * self.fpr >= ENOUGH

    def __str__(self) -> str:
        note = (
            "" if self.resolved else f" (only {self.controls * self.fpr:.1f} control examples lie above the threshold)"
        )
        return f"recall {self.recall_with_threshold} at {self.fpr:.1%} false alarms{note}"

    def to_json(self) -> dict[str, Any]:
        names = ("threshold", "recall", "recall_with_threshold", "control_fpr")
        estimates = {name: getattr(self, name).to_json() for name in names}
        return {"fpr": self.fpr, **estimates, "controls": self.controls, "resolved": self.resolved}


def threshold_at_fpr(control: Float[np.ndarray | Array, " example"], fpr: float) -> float:
    """The threshold that a share `fpr` of control scores passes: their 1 - fpr quantile, linearly interpolated.

    An example is flagged if its score is greater than the threshold.

    Args:
      control: the scores of benign examples that are not otherwise used.
      fpr: the rate of false alarms, between 0 and 1.

    Raises:
      UserError: less than one control score would lie above the threshold, or a score is not finite.
    """
    values = _finite(control, "control")
    if not 0 < fpr < 1:
        raise UserError(f"fpr={fpr} must lie between 0 and 1")
    if values.size * fpr < 1 - 1e-9:
        raise UserError(
            f"{values.size} control examples cannot show a false-alarm rate of {fpr:g}: "
            f"give at least {int(np.ceil(1 / fpr - 1e-9))}"
        )
    return float(np.quantile(values, 1 - fpr))


def recall_at_fpr(
    positive: Float[np.ndarray | Array, " example"],
    control: Float[np.ndarray | Array, " example"],
    fpr: float,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> RecallAtFpr:
    """Recall of positive examples at a threshold from control examples. All examples count as independent.

    Args:
      positive: the scores of positive examples.
      control: the scores of benign examples.
      fpr: the rate of false alarms.
      level: the coverage of the intervals.
      draws: the number of bootstrap samples.
      seed: the seed of the samples.

    Raises:
      UserError: as `threshold_at_fpr`, or there is no positive example.
    """
    threshold = threshold_at_fpr(control, fpr)
    values, benign = _finite(positive, "positive"), np.sort(_finite(control, "control"))
    rng = np.random.default_rng(seed)
    thresholds = _drawn_quantiles(benign, 1 - fpr, draws, rng)
    ranked = np.sort(values)
    shares = 1 - np.searchsorted(ranked, thresholds, side="right") / ranked.size
    hits = int((values > threshold).sum())
    recall = clopper_pearson(hits, values.size, level)
    return RecallAtFpr(
        float(fpr),
        interval(threshold, thresholds, level),
        recall,
        interval(recall.value, rng.binomial(ranked.size, shares) / ranked.size, level),
        clopper_pearson(int((benign > threshold).sum()), benign.size, level),
        benign.size,
    )


def _drawn_quantiles(ranked: np.ndarray, share: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """A quantile of bootstrap samples, without drawing the samples.

    The k-th smallest of n draws with replacement is the entry ⌊n U⌋ of the sorted values, where U is the k-th smallest
    of n uniform numbers: U ~ Beta(k, n-k+1), and the next one is U + (1-U) Beta(1, n-k).
    """
    n = ranked.size
    position = share * (n - 1)
    k = int(np.floor(position + 1e-9))
    low = rng.beta(k + 1, n - k, draws)
    high = low + (1 - low) * rng.beta(1, n - k - 1, draws) if k + 1 < n else low
    entry = lambda u: ranked[np.minimum((n * u).astype(int), n - 1)]
    return entry(low) + (position - k) * (entry(high) - entry(low))


def _finite(scores: Float[np.ndarray | Array, " example"], what: str) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not values.size:
        raise UserError(f"the {what} scores have shape {values.shape}: give one score for each example")
    if not np.isfinite(values).all():
        raise UserError(f"{int((~np.isfinite(values)).sum())} of {values.size} {what} scores are not finite")
    return values
