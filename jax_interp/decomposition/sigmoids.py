"""From a gate's value to a causal importance between 0 and 1: a lower form, that masks are made of, and an upper one,
that sparsity is asked of. They differ in where gradients leak past the ends, so that neither gets stuck there.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

LEAK = 0.01


@jax.custom_vjp
def lower_leaky(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """`clip(z, 0, 1)`. Backward: 1 inside (0, 1]; above 1 nothing; at 0 and below, `LEAK` of a gradient that a descent
    step would follow upwards, and nothing of one that points further down (the torch line of 2026)."""
    return jnp.clip(z, 0, 1)


def _lower_leaky_backward(z: Array, g: Array) -> tuple[Array]:
    below = jnp.where(g < 0, jnp.asarray(LEAK, g.dtype) * g, jnp.zeros_like(g))
    return (jnp.where(z <= 0, below, jnp.where(z <= 1, g, jnp.zeros_like(g))),)


lower_leaky.defvjp(lambda z: (jnp.clip(z, 0, 1), z), _lower_leaky_backward)


def lower_leaky_v1(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """`LEAK · z` up to 0, then `min(z, 1)` (SPD 2025): masks may be slightly negative."""
    return jnp.where(z <= 0, jnp.asarray(LEAK, z.dtype) * z, jnp.minimum(z, 1))


def upper_leaky(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """`max(z, 0)` up to 1, then `1 + LEAK · (z - 1)`."""
    leak = jnp.asarray(LEAK, z.dtype)
    return jnp.where(z <= 1, jnp.maximum(z, 0), 1 + leak * (z - 1))


def hard(z: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(z, 0, 1)


def swish_hard(z: Float[Array, "..."], beta: float = 10.0) -> Float[Array, "..."]:
    """`s(z) - s(z - 1)` with s(t) = t σ(βt): a hard sigmoid with smooth corners, sharper the larger `beta`."""
    b = jnp.asarray(beta, z.dtype)
    s = lambda t: t * jax.nn.sigmoid(b * t)
    return s(z) - s(z - 1)


# name: (lower, upper)
SIGMOIDS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "leaky_hard": (lower_leaky, upper_leaky),
    "leaky_hard_v1": (lower_leaky_v1, upper_leaky),
    "hard": (hard, hard),
    "normal": (jax.nn.sigmoid, jax.nn.sigmoid),
    "swish_hard": (swish_hard, swish_hard),
}
