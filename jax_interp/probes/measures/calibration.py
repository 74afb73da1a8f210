"""Calibration: of the examples that get the probability p, is a share p positive?"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """How probabilities compare with what happened.

    Args:
      brier: the mean of (probability - outcome)².
      log_loss: the mean of -log(probability of the outcome), in nats.
      ece: the expected calibration error: the mean over examples of |frequency - confidence| of their bin.
      confidence: the mean probability in each bin. NaN in empty bins.
      frequency: the share of positive examples in each bin. NaN in empty bins.
      count: the number of examples in each bin.
    """

    brier: float
    log_loss: float
    ece: float
    confidence: Float[np.ndarray, " bin"]
    frequency: Float[np.ndarray, " bin"]
    count: Int[np.ndarray, " bin"]

    def to_json(self) -> dict[str, Any]:
        """The figures, and the bins that have examples."""
        some = self.count > 0
        bins = {name: getattr(self, name)[some].tolist() for name in ("confidence", "frequency", "count")}
        return {"brier": self.brier, "log_loss": self.log_loss, "ece": self.ece, **bins}


def calibration(
    probability: Float[np.ndarray | Array, " example"], positive: Bool[np.ndarray, " example"], bins: int = 10
) -> Calibration:
    """Compare probabilities with outcomes, in bins of equal width.

    Args:
      probability: the probability of each example to be positive.
      positive: whether each example is positive.
      bins: the number of bins of [0, 1]. A bin does not hold its lower edge, except the first one.

    Raises:
      UserError: a probability is not in [0, 1], there is no example, or the shapes differ.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(positive, bool)
    if p.ndim != 1 or p.shape != y.shape or not p.size:
        raise UserError(f"{p.shape} probabilities and {y.shape} outcomes: give one of each for each example")
    if not ((p >= 0) & (p <= 1)).all():
        raise UserError("a probability is not in [0, 1]: give sigmoid(score) of a probe whose score is a log-odds")
    if bins < 1:
        raise UserError(f"bins={bins} must be at least 1")
    of = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p)
    count = np.bincount(of, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, frequency = (np.bincount(of, weights=v, minlength=bins) / count for v in (p, y.astype(float)))
    some = count > 0
    error = float((count[some] * np.abs(frequency - confidence)[some]).sum() / p.size)
    tiny = np.finfo(np.float64).eps
    log_loss = -np.log(np.clip(np.where(y, p, 1 - p), tiny, 1)).mean()
    return Calibration(float(((p - y) ** 2).mean()), float(log_loss), error, confidence, frequency, count)
