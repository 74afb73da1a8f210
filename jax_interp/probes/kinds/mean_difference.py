"""`MeanDifference`: the direction from the mean of one class to the mean of the other (mass-mean without a covariance).

Marks & Tegmark 2023 (arXiv:2310.06824): θ = μ₊ - μ₋. It reads less well than logistic regression where the classes
share a large variance, and writes better: moving along it moves one class to the other.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.probes.kind import KINDS, Kind, Rows
from jax_interp.probes.probe import LinearProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class MeanDifference(Kind):
    """θ = μ₊ - μ₋. The threshold is halfway between the means."""

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> LinearProbe:
        high = jax.lax.Precision.HIGHEST
        mean = lambda w: jnp.matmul(w, data.x, precision=high) / jnp.sum(w)
        positive, negative = mean(jnp.where(data.y == 1, data.weight, 0)), mean(jnp.where(data.y == 0, data.weight, 0))
        weight = positive - negative
        bias = -jnp.dot(weight, (positive + negative) / 2, precision=high)
        return LinearProbe(weight, bias, jnp.zeros_like(bias))
