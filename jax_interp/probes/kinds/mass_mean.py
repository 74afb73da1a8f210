"""`MassMean`: the direction from the mean of one class to the mean of the other, and its whitened form.

Marks & Tegmark 2023 (arXiv:2310.06824): θ = μ₊ - μ₋ (also called difference of means), and Σ⁻¹θ for reading. Where the
classes share a large variance, θ reads less well than logistic regression, and it writes better: moving along θ moves
one class to the other. Σ⁻¹θ is linear discriminant analysis with equal priors; it reads like logistic regression.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.probes.class_moments import (
    HIGH,
    ClassMoments,
    class_means,
    class_moments,
    class_weights,
    counted_rows,
    whitened_difference,
)
from jax_interp.probes.kind import KINDS, Kind, Rows
from jax_interp.probes.probe import LinearProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class MassMean(Kind):
    """The weight is θ = μ₊ - μ₋, or Σ⁻¹θ. The score is 0 halfway between the means.

    Args:
      covariance: use Σ⁻¹θ, with the covariance Σ of the rows around the mean of their own class. The score is then the
        log-odds of two normal distributions with this covariance and equal priors.
      tolerance: Σ⁻¹ is a pseudo-inverse. Directions whose variance is below this part of the largest one, after each
        column was scaled to variance 1, are left out. (The published code has an absolute tolerance of 1e-3 on the
        eigenvalues of Σ, which depends on the unit of the values.)
    """

    covariance: bool = False
    tolerance: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < 1:
            raise UserError(f"tolerance={self.tolerance} must be between 0 and 1")

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> LinearProbe:
        if self.covariance:
            return self.from_moments(class_moments(data.x, data.y, data.weight))
        x = counted_rows(data.x, data.weight)
        negative, positive = class_means(x, class_weights(data.y, data.weight, x))
        return _between(positive - negative, (positive + negative) / 2, log_odds=False)

    def from_moments(self, moments: ClassMoments) -> LinearProbe:
        """The probe of rows with these moments."""
        weight = whitened_difference(moments, self.tolerance) if self.covariance else moments.difference
        return _between(weight, moments.midpoint, log_odds=self.covariance)


def _between(weight: Float[Array, " d"], midpoint: Float[Array, " d"], *, log_odds: bool) -> LinearProbe:
    bias = -jnp.dot(weight, midpoint, precision=HIGH)
    return LinearProbe(weight, bias, jnp.zeros_like(bias), log_odds)
