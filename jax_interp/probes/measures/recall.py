"""Recall at a rate of false alarms: the threshold comes from a separate set of benign examples.

    threshold_at_fpr(control, 0.01)                  the 99th percentile of the control scores
    recall_at_fpr(positive, control, 0.01)           the share of positive scores above it, with intervals

A small control set cannot say where the threshold is: 1 % of 100 scores is one score. The result says so.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate
from jax_interp.probes.measures.intervals import clopper_pearson

ENOUGH = 10
"""The number of control scores above the threshold from which on the threshold counts as resolved."""


@dataclasses.dataclass(frozen=True)
class RecallAtFpr:
    """The share of positive examples above a threshold that few control examples pass.

    Args:
      fpr: the rate of false alarms that was asked for.
      threshold: the threshold, with an interval from the order of the control scores. Its upper end is infinite if
        there are too few to bound it.
      recall: the share of positive scores above the threshold, with the Clopper-Pearson interval. This interval takes
        the threshold as given.
      recall_with_threshold: the same share, with an interval that includes the uncertainty of the threshold. It reaches
        down to 0 if the threshold has no upper bound.
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
        """All figures. An infinite end of an interval is None."""
        names = ("threshold", "recall", "recall_with_threshold", "control_fpr")
        finite = lambda end: end if np.isfinite(end) else None
        estimates = {n: {key: finite(end) for key, end in getattr(self, n).to_json().items()} for n in names}
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
      draws: the number of draws for the intervals with threshold.
      seed: the seed of the draws.

    Raises:
      UserError: as `threshold_at_fpr`, or there is no positive example.
    """
    threshold = threshold_at_fpr(control, fpr)
    values, benign = np.sort(_finite(positive, "positive")), np.sort(_finite(control, "control"))
    rng, tail = np.random.default_rng(seed), (1 - level) / 2
    # The number of control scores below the true threshold is binomial. The threshold lies above the last of them and
    # below the next one, which may not exist.
    below = rng.binomial(benign.size, 1 - fpr, draws)
    ends = np.concatenate([[-np.inf], benign, [np.inf]])
    lowest, highest = ends[below], ends[below + 1]
    share = lambda t: (
        rng.binomial(values.size, 1 - np.searchsorted(values, t, side="right") / values.size) / values.size
    )
    recall = clopper_pearson(int((values > threshold).sum()), values.size, level)
    of = lambda drawn, at: float(np.quantile(drawn, at, method="inverted_cdf"))
    return RecallAtFpr(
        float(fpr),
        Estimate(threshold, min(of(lowest, tail), threshold), max(of(highest, 1 - tail), threshold)),
        recall,
        Estimate(
            recall.value, min(of(share(highest), tail), recall.low), max(of(share(lowest), 1 - tail), recall.high)
        ),
        clopper_pearson(int((benign > threshold).sum()), benign.size, level),
        benign.size,
    )


def _finite(scores: Float[np.ndarray | Array, " example"], what: str) -> np.ndarray:
    values = np.asarray(scores, np.float64)
    if values.ndim != 1 or not values.size:
        raise UserError(f"the {what} scores have shape {values.shape}: give one score for each example")
    if not np.isfinite(values).all():
        raise UserError(f"{int((~np.isfinite(values)).sum())} of {values.size} {what} scores are not finite")
    return values
