"""Steps of a search on a sphere, and on the part of it that is orthogonal to earlier vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def unit(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
    """The vector divided by its norm. A vector of norm zero stays zero."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    return x / jnp.where(norm > 0, norm, 1.0)


def without(x: Float[Array, " d"], earlier: Float[Array, "n d"]) -> Float[Array, " d"]:
    """The part of `x` that is orthogonal to earlier vectors, which are orthogonal to each other. Zero rows do nothing.

    The projection is done twice: once leaves an error that is large if little of `x` is left.
    """
    rows = unit(earlier)
    for _ in range(2):
        x = x - jnp.matmul(jnp.matmul(rows, x, precision="highest"), rows, precision="highest")
    return x


def tangent(x: Float[Array, " d"], theta: Float[Array, " d"]) -> Float[Array, " d"]:
    """The part of `x` that is tangent to the sphere at θ."""
    along = unit(theta)
    return x - jnp.sum(x * along) * along


def on_sphere(
    x: Float[Array, " d"], radius: float, earlier: Float[Array, "n d"], instead: Float[Array, " d"]
) -> Float[Array, " d"]:
    """`x` without its part along earlier vectors, scaled to the radius. If nothing is left, `instead`."""
    x = without(x, earlier)
    left = jnp.sum(x * x) > 0
    return jnp.where(left, radius * unit(x), instead)


def random_on_sphere(key: Key[Array, ""], shape: tuple[int, ...], radius: float) -> Float[Array, "... d"]:
    """Random vectors of norm `radius`, uniform over the sphere."""
    return radius * unit(jax.random.normal(key, shape, jnp.float32))


def orthonormal(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
    """The rows made orthonormal one after the other. Each keeps the sign of its own new part.

    The QR of a library may turn the sign of a row. To a map that is not odd, -v is another vector.
    """
    q, r = jnp.linalg.qr(rows.T)
    return (q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None, :]).T
