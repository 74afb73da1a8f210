"""Weights that make classes count alike."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def balanced_weights(
    y: Int[Array, "*problem row"], weight: Float[Array, "*problem row"], classes: int
) -> Float[Array, "*problem row"]:
    """Weights of rows with which every class has the same sum, and the sum over all classes is unchanged.

    This is scikit-learn's `class_weight="balanced"`.

    Args:
      y: the class of each row.
      weight: the weight of each row.
      classes: the number of classes.
    """
    number = jnp.arange(classes, dtype=y.dtype).reshape((1,) * (y.ndim - 1) + (-1, 1))
    member = (y[..., None, :] == number).astype(weight.dtype)
    of_class = jnp.sum(member * weight[..., None, :], axis=-1)
    total = jnp.sum(weight, axis=-1, keepdims=True)
    factor = total / (classes * jnp.where(of_class > 0, of_class, jnp.ones_like(of_class)))
    return weight * jnp.einsum("...cn,...c->...n", member, factor)
