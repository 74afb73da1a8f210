"""`LogisticDirection`: the weight of a logistic regression between the classes."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.probes.fit_inputs import pairs_of
from jax_interp.probes.gather import Vectors
from jax_interp.probes.kinds.logistic import Logistic
from jax_interp.steering.finding.method import (
    DIRECTION_METHODS,
    DirectionMethod,
    ReadTexts,
    directions_of_probes,
)


@DIRECTION_METHODS.register
@dataclasses.dataclass(frozen=True)
class LogisticDirection(DirectionMethod):
    """The weight of the probe `Logistic`, with length 1.

    It is the direction that reads best. A difference of means usually steers better (Marks & Tegmark 2023,
    arXiv:2310.06824).

    Args:
      C: the inverse strength of the L2 penalty.
      centre_pairs: subtract the mean of its pair from each example, and fit no intercept. The `logistic` aggregator of
        steering-vectors does this.
    """

    C: float = 1.0
    centre_pairs: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.C < float("inf"):
            raise UserError(f"C={self.C} must be positive")

    def directions(self, texts: ReadTexts) -> Float[np.ndarray, "site rule d"]:
        on = _centred_by_pair(texts.vectors) if self.centre_pairs else texts.vectors
        return directions_of_probes(Logistic(C=(self.C,), bias=not self.centre_pairs), on)


def _centred_by_pair(on: Vectors) -> Vectors:
    """The examples of all pairs, one pair after the other, without the mean of their pair."""
    pairs = pairs_of(on.data)
    data = dataclasses.replace(on.data, pairs=None).take(pairs.reshape(-1))

    def centred(x: np.ndarray) -> np.ndarray:
        both = x[:, pairs].astype(np.float64)  # [rule, pair, 2, d]
        both = both - both.mean(axis=2, keepdims=True)
        return both.reshape(len(x), -1, x.shape[-1]).astype(np.float32)

    return Vectors(data, on.rules, {site: centred(x) for site, x in on.values.items()})
