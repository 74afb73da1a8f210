"""The hard-concrete distribution: random masks in [0, 1] that are often exactly 0 or 1, with gradients (Louizos et al.
2018, arXiv:1712.01312).

z = clip(s (r - l) + l, 0, 1) with s = sigmoid((log u - log(1 - u) + α) / β) and u uniform in (0, 1).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

LEFT, RIGHT, TEMPERATURE, EPS = -0.1, 1.1, 2 / 3, 1e-6
"""l, r and β of Louizos et al. 2018, and how far u stays away from 0 and 1."""


def sample(key: Key[Array, ""], log_alpha: Float[Array, "..."]) -> Float[Array, "..."]:
    """Draw masks."""
    u = jax.random.uniform(key, log_alpha.shape, log_alpha.dtype, EPS, 1 - EPS)
    s = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + log_alpha) / TEMPERATURE)
    return jnp.clip(s * (RIGHT - LEFT) + LEFT, 0, 1)


def kept(log_alpha: Float[Array, "..."]) -> Float[Array, "..."]:
    """The probability that a mask is not 0: the expected L0 norm of one entry."""
    return jax.nn.sigmoid(log_alpha - TEMPERATURE * math.log(-LEFT / RIGHT))
