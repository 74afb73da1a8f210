"""Decoder rows held at unit norm.

Without the constraint a dictionary can shrink its latents and grow its decoder at no cost. The part of the gradient
along a row would only be undone by the renormalisation, but it would still enter Adam's moments: it is taken out first.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def unit_rows(W: Float[Array, "feature d"]) -> Float[Array, "feature d"]:
    """Rows scaled to norm 1. A row of norm 0 stays 0."""
    norm = jnp.sqrt(jnp.sum(W * W, axis=-1, keepdims=True))
    return W / jnp.where(norm > 0, norm, jnp.ones_like(norm))


def without_parallel(g: Float[Array, "feature d"], W: Float[Array, "feature d"]) -> Float[Array, "feature d"]:
    """`g` without its component along each row of `W`, whose rows have norm 1."""
    return g - jnp.sum(g * W, axis=-1, keepdims=True) * W
