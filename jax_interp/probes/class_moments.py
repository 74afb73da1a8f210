"""`ClassMoments`: the weights, means and the covariance of two classes, from which several kinds follow exactly."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass

HIGH = jax.lax.Precision.HIGHEST
CONSTANT = 1e-6
"""A column whose standard deviation is below this part of its mean is constant, up to the rounding of float32."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ClassMoments:
    """The first two moments of two classes.

    Args:
      weight: n₋ and n₊, the total weight of each class.
      mean: μ₋ and μ₊.
      covariance: Σ = 1/n Σᵢ (xᵢ - μ_yᵢ)(xᵢ - μ_yᵢ)ᵀ: each row is centred by its own class, and n = n₋ + n₊.
    """

    weight: Float[Array, "2"]
    mean: Float[Array, "2 d"]
    covariance: Float[Array, "d d"]

    @property
    def difference(self) -> Float[Array, " d"]:
        """θ = μ₊ - μ₋."""
        return self.mean[1] - self.mean[0]

    @property
    def midpoint(self) -> Float[Array, " d"]:
        """(μ₊ + μ₋) / 2."""
        return (self.mean[0] + self.mean[1]) / 2


def counted_rows(x: Float[Array, "row d"], weight: Float[Array, " row"]) -> Float[Array, "row d"]:
    """The rows in at least float32. A row of weight 0 is 0, whatever it holds, NaN too."""
    x = upcast(x)
    return jnp.where((weight > 0)[:, None], x, jnp.zeros_like(x))


def class_weights(
    y: Int[Array, " row"], weight: Float[Array, " row"], x: Float[Array, "row d"]
) -> Float[Array, "2 row"]:
    """The weight of each row in the negative and in the positive class, in the dtype of `x`."""
    return jnp.where(jnp.stack([y == 0, y == 1]), weight[None, :], jnp.zeros_like(weight)[None, :]).astype(x.dtype)


def class_means(x: Float[Array, "row d"], of_class: Float[Array, "2 row"]) -> Float[Array, "2 d"]:
    """The mean of each class. NaN if a class has no weight.

    Args:
      x: `counted_rows`.
      of_class: `class_weights`.
    """
    total = jnp.sum(of_class, axis=1)[:, None]
    near = jnp.matmul(jnp.sum(of_class, axis=0), x, precision=HIGH) / jnp.sum(total)
    # The mean of what is left has no rounding error in the size of a large mean.
    return near[None, :] + jnp.matmul(of_class, x - near[None, :], precision=HIGH) / total


def class_moments(x: Float[Array, "row d"], y: Int[Array, " row"], weight: Float[Array, " row"]) -> ClassMoments:
    """The moments of the rows of two classes, in at least float32.

    Args:
      x: the rows.
      y: the class of each row, 0 or 1.
      weight: the weight of each row; 0 leaves it out.
    """
    x = counted_rows(x, weight)
    of_class = class_weights(y, weight, x)
    mean = class_means(x, of_class)
    each = jnp.sum(of_class, axis=0)
    centred = (x - jnp.where((y == 1)[:, None], mean[1:], mean[:1])) * jnp.sqrt(each)[:, None]
    covariance = jnp.matmul(centred.T, centred, precision=HIGH) / jnp.sum(each)
    return ClassMoments(jnp.sum(of_class, axis=1), mean, covariance)


def whitened_difference(moments: ClassMoments, tolerance: float) -> Float[Array, " d"]:
    """Σ⁺ (μ₊ - μ₋), the Fisher direction.

    The columns are scaled to a standard deviation of 1 before the inversion, so that neither the unit of the values nor
    a few columns with a very large variance decide which directions are kept.

    Args:
      moments: the moments.
      tolerance: an eigenvalue of the correlation matrix below this part of the largest one counts as 0. Columns that
        are constant in both classes are left out.

    Returns:
      The direction. NaN if no column varies within the classes.
    """
    variance = jnp.diagonal(moments.covariance)
    varies = jnp.sqrt(variance) > CONSTANT * jnp.max(jnp.abs(moments.mean), axis=0)
    scale = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, jnp.ones_like(variance))), jnp.ones_like(variance))
    both = varies[:, None] & varies[None, :]
    correlation = jnp.where(both, moments.covariance / (scale[:, None] * scale[None, :]), 0.0)
    values, vectors = jnp.linalg.eigh(correlation)
    kept = values > tolerance * values[-1]
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, jnp.ones_like(values)), jnp.zeros_like(values))
    theta = jnp.where(varies, moments.difference / scale, 0.0)
    inner = jnp.matmul(theta, vectors, precision=HIGH) * inverse
    found = jnp.matmul(vectors, inner, precision=HIGH) / scale
    return jnp.where(jnp.any(varies), found, jnp.nan)
