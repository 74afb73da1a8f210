"""`LDA`: linear discriminant analysis with a shrunk covariance.

The weight is Σ⁻¹(μ₊ - μ₋) with Σ shrunk towards a multiple of the identity. The score is the log-odds of two normal
distributions that share Σ, with the classes' shares of the rows as priors. It equals scikit-learn's
`LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...)`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.probes.class_moments import (
    CONSTANT,
    HIGH,
    ClassMoments,
    class_means,
    class_moments,
    class_weights,
    counted_rows,
)
from jax_interp.probes.kind import KINDS, Kind, Rows
from jax_interp.probes.probe import LinearProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class LDA(Kind):
    """Σ = (1 - s) S + s tr(S)/d I, where S is the covariance around the mean of each class.

    Args:
      shrinkage: the values of s, each above 0 and at most 1, which are fitted side by side. "auto": the s of Ledoit &
        Wolf 2004, for each class by itself and in columns of variance 1. `MassMean(covariance=True)` has no shrinkage.
    """

    shrinkage: tuple[float, ...] | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        if self.shrinkage == "auto":
            return
        if not self.shrinkage or not all(0 < s <= 1 for s in self.shrinkage):
            raise UserError(
                f"shrinkage={self.shrinkage} must be numbers above 0 and at most 1, or 'auto'; "
                "LDA without shrinkage is MassMean(covariance=True)"
            )

    @property
    def strengths(self) -> tuple[float, ...]:
        return () if self.shrinkage == "auto" else self.shrinkage

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> LinearProbe:
        if strength is not None:
            return self.from_moments(class_moments(data.x, data.y, data.weight), strength)
        x = counted_rows(data.x, data.weight)
        of_class = class_weights(data.y, data.weight, x)
        mean, total = class_means(x, of_class), jnp.sum(of_class, axis=1)
        each = [ledoit_wolf(x - mean[c][None, :], of_class[c], mean[c]) for c in (0, 1)]
        priors = total / jnp.sum(total)
        return _probe(ClassMoments(total, mean, priors[0] * each[0] + priors[1] * each[1]))

    def from_moments(self, moments: ClassMoments, strength: Float[Array, ""]) -> LinearProbe:
        """The probe of rows with these moments, for one shrinkage s."""
        S = moments.covariance
        shrunk = (1 - strength) * S + strength * jnp.mean(jnp.diagonal(S)) * jnp.eye(len(S), dtype=S.dtype)
        return _probe(dataclasses.replace(moments, covariance=shrunk))


def _probe(moments: ClassMoments) -> LinearProbe:
    """The Gaussian log-odds. Columns are scaled to variance 1 before Σ is factored, for accuracy in float32."""
    scale = jnp.sqrt(jnp.diagonal(moments.covariance))
    factor = jax.scipy.linalg.cho_factor(moments.covariance / (scale[:, None] * scale[None, :]), lower=True)
    weight = jax.scipy.linalg.cho_solve(factor, moments.difference / scale) / scale
    prior = jnp.log(moments.weight[1] / moments.weight[0])
    bias = prior - jnp.dot(weight, moments.midpoint, precision=HIGH)
    return LinearProbe(weight, bias, jnp.zeros_like(bias), log_odds=True)


def ledoit_wolf(
    centred: Float[Array, "row d"], weight: Float[Array, " row"], mean: Float[Array, " d"]
) -> Float[Array, "d d"]:
    """The covariance of rows, with the shrinkage of Ledoit & Wolf 2004 (Journal of Multivariate Analysis 88, eq. 14).

    As in scikit-learn's `shrinkage="auto"`, the shrinkage is that of columns of variance 1.

    Args:
      centred: the rows minus their mean.
      weight: the weight of each row, as a number of copies.
      mean: the mean of the rows.
    """
    n, d = jnp.sum(weight), centred.shape[1]
    variance = jnp.matmul(weight, centred * centred, precision=HIGH) / n
    varies = jnp.sqrt(variance) > CONSTANT * jnp.abs(mean)
    scale = jnp.sqrt(jnp.where(varies, variance, jnp.ones_like(variance)))
    z = jnp.where(varies[None, :], centred / scale[None, :], jnp.zeros_like(centred))
    S = jnp.matmul(z.T * weight[None, :], z, precision=HIGH) / n
    target = jnp.trace(S) / d
    squares, whole = jnp.sum(S * S), jnp.sum(z * z, axis=1)
    noise = (jnp.dot(weight, whole * whole, precision=HIGH) / n - squares) / n
    distance = squares - d * target * target
    amount = jnp.where(noise <= 0, 0.0, jnp.minimum(noise, distance) / jnp.where(distance > 0, distance, 1.0))
    shrunk = (1 - amount) * S + amount * target * jnp.eye(d, dtype=S.dtype)
    return shrunk * scale[:, None] * scale[None, :]
