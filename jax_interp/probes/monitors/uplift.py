"""Uplift: how much better one monitor is than another on the same examples.

Parrack et al. 2025 (arXiv:2507.12691) call the difference between a monitor with white-box access and one without the
black-to-white boost.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.core.estimates import Estimate, interval
from jax_interp.probes.measures.recall import threshold_at_fpr


@dataclasses.dataclass(frozen=True)
class Uplift:
    """One monitor minus another, with paired intervals.

    Args:
      monitor: the monitor, such as a white-box one.
      baseline: the monitor that it is compared with, such as a black-box one.
      auroc: the difference of the AUROCs on the test examples (`auroc_difference`).
      recall: the difference of the recalls at `fpr` (`recall_difference`).
      fpr: the rate of false alarms on the control examples.
    """

    monitor: str
    baseline: str
    auroc: Estimate
    recall: Estimate
    fpr: float

    def to_json(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "baseline": self.baseline,
            "auroc": self.auroc.to_json(),
            "recall": self.recall.to_json(),
            "fpr": self.fpr,
        }


def recall_difference(
    positive: Float[np.ndarray, "2 example"],
    control: Float[np.ndarray, "2 example"],
    fpr: float,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The recall of the first monitor minus that of the second, each at its own threshold from the control examples.

    A draw of the paired bootstrap resamples the suspicious and the control examples, with both scores of each, and
    takes the thresholds anew.

    Args:
      positive: both scores of the suspicious examples.
      control: both scores of the control examples.
      fpr: the rate of false alarms on the control examples.
      level: the coverage of the interval.
      draws: the number of bootstrap samples.
      seed: the seed of the samples.

    Raises:
      UserError: there are too few control examples for `fpr`.
    """
    positive, control = np.asarray(positive, np.float64), np.asarray(control, np.float64)
    if positive.ndim != 2 or control.ndim != 2 or len(positive) != 2 or len(control) != 2:
        raise UserError(f"give two scores for each example, got {positive.shape} and {control.shape}")
    threshold = [threshold_at_fpr(of, fpr) for of in control]
    recall = [float((of > t).mean()) for of, t in zip(positive, threshold, strict=True)]
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(draws):
        of_control = control[:, rng.integers(control.shape[1], size=control.shape[1])]
        of_positive = positive[:, rng.integers(positive.shape[1], size=positive.shape[1])]
        found = (of_positive > np.quantile(of_control, 1 - fpr, axis=1)[:, None]).mean(axis=1)
        drawn.append(found[0] - found[1])
    return interval(recall[0] - recall[1], np.asarray(drawn), level)
