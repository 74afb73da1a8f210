"""Products with the first and second derivatives of the mean change Δ(θ), by `jax.jvp` and `jax.vjp`.

    J v = ∂Δ · v        uᵀ J        H(:, v, v) = ∂²Δ · v · v        H(u, v, :)

No derivative is ever an array in memory. All are taken at θ = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Change = Callable[[Float[Array, " d"]], Float[Array, " d_target"]]
"""Δ(θ), the mean change of the target."""


def jacobian_times(change: Change, v: Float[Array, " d"]) -> Float[Array, " d_target"]:
    """J v."""
    return jax.jvp(change, (jnp.zeros_like(v),), (v,))[1]


def times_jacobian(change: Change, u: Float[Array, " d_target"], width: int) -> Float[Array, " d"]:
    """uᵀ J. `width` is the number of entries of θ."""
    return jax.vjp(change, jnp.zeros(width, jnp.float32))[1](u)[0]


def hessian_along(change: Change, v: Float[Array, " d"]) -> Float[Array, " d_target"]:
    """H(:, v, v): the second derivative of Δ along `v`."""
    along = lambda theta: jax.jvp(change, (theta,), (v,))[1]
    return jax.jvp(along, (jnp.zeros_like(v),), (v,))[1]


def hessian_between(change: Change, u: Float[Array, " d_target"], v: Float[Array, " d"]) -> Float[Array, " d"]:
    """H(u, v, :): the gradient of u · ∂Δ(θ) · v."""
    return jax.grad(lambda theta: jnp.vdot(u, jax.jvp(change, (theta,), (v,))[1]))(jnp.zeros_like(v))
