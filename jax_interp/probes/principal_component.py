"""The first principal component of weighted rows."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.probes.class_moments import HIGH


def first_component(rows: Float[Array, "row d"], weight: Float[Array, " row"]) -> Float[Array, " d"]:
    """The unit vector v with the largest Σᵢ weightᵢ (rowᵢ · v)². Its sign is arbitrary. NaN if all rows are 0.

    The rows are not centred here. The smaller one of the two Gram matrices is factored: of rows, or of columns.
    """
    scaled = rows * jnp.sqrt(weight)[:, None]
    scaled = scaled / jnp.max(jnp.abs(scaled))  # squares of float32 overflow and underflow
    n, d = rows.shape
    if n < d:
        vectors = jnp.linalg.eigh(jnp.matmul(scaled, scaled.T, precision=HIGH))[1]
        found = jnp.matmul(vectors[:, -1], scaled, precision=HIGH)
    else:
        found = jnp.linalg.eigh(jnp.matmul(scaled.T, scaled, precision=HIGH))[1][:, -1]
    return found / jnp.linalg.norm(found)
