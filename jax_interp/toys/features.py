"""Data of the toys: feature vectors of which few entries are not zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key


def sparse_features(
    key: Key[Array, ""], batch: int, n: int, probability: ArrayLike, low: float = 0.0, high: float = 1.0
) -> Float[Array, "batch feature"]:
    """Each entry is 0, or with `probability` uniform in [low, high), independently.

    One uniform number u decides both: an entry is on where u < p, and u / p is then uniform in [0, 1) (with a
    resolution of 2^-23 / p in float32).
    """
    p = jnp.asarray(probability, jnp.float32)
    u = jax.random.uniform(key, (batch, n))
    return jnp.where(u < p, low + (high - low) * (u / jnp.maximum(p, 1e-9)), 0.0)


def one_active(
    key: Key[Array, ""], batch: int, n: int, low: float = 0.0, high: float = 1.0
) -> Float[Array, "batch feature"]:
    """Exactly one entry of each row is on, uniform in [low, high): the limit of greatest sparsity."""
    which, value = jax.random.split(key)
    on = jax.nn.one_hot(jax.random.randint(which, (batch,), 0, n), n)
    return on * jax.random.uniform(value, (batch, 1), minval=low, maxval=high)
