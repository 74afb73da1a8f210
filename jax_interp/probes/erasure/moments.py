"""Means and covariances of activations and a concept, added up batch after batch. Erasers are fitted on them.

moments = Moments.empty(d, k)
for x, z in batches:
    moments = jitted_update(moments, x, z)

Sums are centred (Chan, Golub & LeVeque 1979), so a large mean does not cost digits. Two `Moments` of different data can
be merged. If the rows are sharded over a mesh, the products are reduced by the compiler as any matrix product.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery.value_tokens import wide

HIGHEST = jax.lax.Precision.HIGHEST


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Centred sums over rows.

    Args:
      n: the sum of the weights.
      mean_x: the mean of x.
      mean_z: the mean of the concept z.
      xx: the sum of (x - mean_x)(x - mean_x)ᵀ.
      xz: the sum of (x - mean_x)(z - mean_z)ᵀ.
      zz: the sum of (z - mean_z)(z - mean_z)ᵀ.
    """

    n: Float[Array, ""]
    mean_x: Float[Array, " d"]
    mean_z: Float[Array, " k"]
    xx: Float[Array, "d d"]
    xz: Float[Array, "d k"]
    zz: Float[Array, "k k"]

    @staticmethod
    def empty(d: int, k: int, dtype: jnp.dtype | type = jnp.float32) -> Moments:
        """The moments of no rows."""
        zeros = lambda *shape: jnp.zeros(shape, dtype)
        return Moments(zeros(), zeros(d), zeros(k), zeros(d, d), zeros(d, k), zeros(k, k))

    def merge(self, other: Moments) -> Moments:
        """The moments of the rows of both."""
        n = self.n + other.n
        share = other.n / jnp.where(n > 0, n, jnp.ones_like(n))
        dx, dz = other.mean_x - self.mean_x, other.mean_z - self.mean_z
        outer = lambda a, b: self.n * share * a[:, None] * b[None, :]
        return Moments(
            n,
            self.mean_x + share * dx,
            self.mean_z + share * dz,
            self.xx + other.xx + outer(dx, dx),
            self.xz + other.xz + outer(dx, dz),
            self.zz + other.zz + outer(dz, dz),
        )

    def update(
        self, x: Float[Array, "row d"], z: Float[Array, "row k"], weight: Float[Array, " row"] | None = None
    ) -> Moments:
        """Add rows.

        Args:
          x: the activations.
          z: the concept: one column for each class but the first, or real numbers.
          weight: the weight of each row. A row of weight 0 is left out, whatever it holds. None: 1.
        """
        return self.merge(moments_of(x, z, weight))


def moments_of(
    x: Float[Array, "row d"], z: Float[Array, "row k"], weight: Float[Array, " row"] | None = None
) -> Moments:
    """The moments of some rows. Half precision is computed in float32. Args as in `Moments.update`."""
    x, z = wide(x), wide(z)
    dtype = jnp.promote_types(x.dtype, z.dtype)
    x, z = x.astype(dtype), z.astype(dtype)
    weight = jnp.ones(len(x), dtype) if weight is None else weight.astype(dtype)
    kept = (weight > 0)[:, None]
    x, z = jnp.where(kept, x, jnp.zeros_like(x)), jnp.where(kept, z, jnp.zeros_like(z))
    n = jnp.sum(weight)
    mean = lambda a: jnp.matmul(weight, a, precision=HIGHEST) / jnp.where(n > 0, n, jnp.ones_like(n))
    mean_x, mean_z = mean(x), mean(z)
    dx, dz = x - mean_x[None, :], z - mean_z[None, :]
    product = lambda a, b: jnp.matmul((weight[:, None] * a).T, b, precision=HIGHEST)
    return Moments(n, mean_x, mean_z, product(dx, dx), product(dx, dz), product(dz, dz))


@dataclasses.dataclass(frozen=True)
class Covariances:
    """The moments as covariances (divided by n), on the host in float64, where erasers are computed."""

    n: float
    mean_x: Float[np.ndarray, " d"]
    mean_z: Float[np.ndarray, " k"]
    xx: Float[np.ndarray, "d d"]
    xz: Float[np.ndarray, "d k"]
    zz: Float[np.ndarray, "k k"]


def covariances(moments: Moments) -> Covariances:
    """Divide the sums by n.

    Raises:
      UserError: there are fewer than two rows, an entry is not finite, or the concept is the same in all rows.
    """
    host = {field.name: np.asarray(getattr(moments, field.name), np.float64) for field in dataclasses.fields(moments)}
    n = float(host.pop("n"))
    if n < 2:
        raise UserError(f"an eraser needs at least two rows, and got {n:g}")
    if not all(np.isfinite(array).all() for array in host.values()):
        raise UserError("the activations or labels are not finite: look for NaN, and for overflow of the sums")
    if not np.diag(host["zz"]).any():
        raise UserError("all rows have the same label: there is no concept to erase")
    means = {name: host[name] for name in ("mean_x", "mean_z")}
    return Covariances(n, **means, **{name: host[name] / n for name in ("xx", "xz", "zz")})
