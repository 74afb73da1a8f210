"""`OracleEraser`: erasure that is given the label of each row. It changes less than LEACE, and needs the labels.

Belrose et al. 2023 (arXiv:2306.03819), with labels: r(x, z) = x - Σxz Σzz⁺ (z - μz), the
residual of the regression of x on z. x and z are then uncorrelated.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.short_repr import ShortRepr
from jax_interp.probes.erasure.leace import inverse_root
from jax_interp.probes.erasure.moments import HIGHEST, Moments, covariances, moments_of
from jax_interp.surgery import Add
from jax_interp.surgery.value_tokens import wide


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class OracleEraser(ShortRepr):
    """r(x, z) = x - slope (z - mean_z).

    Args:
      slope: Σxz Σzz⁺.
      mean_z: the mean of the concept.
    """

    slope: Float[Array, "d k"]
    mean_z: Float[Array, " k"]

    def __call__(self, x: Float[Array, "... d"], z: Float[Array, "... k"]) -> Float[Array, "... d"]:
        return (wide(x) + self.shift(z).astype(wide(x).dtype)).astype(x.dtype)

    def shift(self, z: Float[Array, "... k"]) -> Float[Array, "... d"]:
        """What is added to x in rows with this concept."""
        z = jnp.asarray(z, self.slope.dtype)
        return -jnp.einsum("...k,dk->...d", z - jnp.broadcast_to(self.mean_z, z.shape), self.slope, precision=HIGHEST)

    def edit(self, z: Float[Array, "example k"]) -> Add:
        """The edit of a batch whose examples have this concept, at a value `[example, pos, d]`."""
        if jnp.ndim(z) != 2:
            raise UserError(f"the concept has shape {jnp.shape(z)}: give one row for each example of the batch")
        return Add(self.shift(z)[:, None, :])


def oracle_eraser(x: Float[ArrayLike, "row d"], z: Float[ArrayLike, "row k"]) -> OracleEraser:
    """Find the oracle eraser. Args and Raises as in `Erasure.fit`."""
    return oracle_from_moments(moments_of(jnp.asarray(x), jnp.asarray(z)))


def oracle_from_moments(moments: Moments) -> OracleEraser:
    """Find the oracle eraser from moments."""
    found = covariances(moments)
    root = inverse_root(found.zz)
    slope = found.xz @ root @ root.T
    return OracleEraser(jnp.asarray(slope, jnp.float32), jnp.asarray(np.asarray(found.mean_z), jnp.float32))
