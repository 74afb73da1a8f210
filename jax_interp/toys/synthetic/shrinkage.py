"""A world of two models in which the minima of the crosscoder losses are known.

In each row one feature fires. It contributes a to model 0 and b to model 1, along the same direction. The losses of
such isolated features are independent. At the minimum, the contributions (latent times decoder) are:

    SSE + λ Σ f (‖d^0‖ + ‖d^1‖)        max(a - λ/2, 0) and max(b - λ/2, 0): the weaker one vanishes if b < λ/2
    SSE + λ Σ f √(‖d^0‖² + ‖d^1‖²)     (a, b) · max(1 - λ / (2 ‖(a, b)‖), 0): the ratio does not change
    SSE with a fixed number of latents  (a, b)

This assumes that each feature is rare, because the bias b_dec learns a part of frequent features. λ is in units of the
SSE, and of the contributions after any scaling of the crosscoder's inputs.

With the L1 loss, a shared feature can look exclusive ("complete shrinkage"). diffing/latent_scaling.py detects this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.toys.synthetic.world import World, orthonormal_directions


@register_dataclass
@dataclasses.dataclass(frozen=True)
class OneAtATime:
    """Codes with one feature on in every row, with strength 1. All features are equally likely."""

    n_features: int = dataclasses.field(metadata={"static": True})

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, "n feature"]:
        return jax.nn.one_hot(jax.random.randint(key, (n,), 0, self.n_features), self.n_features)


def two_models(
    key: Key[Array, ""],
    contributions: Sequence[tuple[float, float]] = ((1, 1), (1, 0.3), (1, 0), (0, 1)),
    d: int = 16,
) -> World:
    """A world whose rows are the values of two models side by side, model 0 first.

    Args:
      key: random key of the directions.
      contributions: (a, b) of each feature. The four default features are shared, weaker in model 1, only in model 0,
        and only in model 1.
      d: the number of dimensions of each model.

    Returns:
      A world with directions `[feature, 2·d]`.
    """
    strength = jnp.asarray(contributions, jnp.float32)
    directions = orthonormal_directions(key, len(strength), d)
    both = (strength[:, :, None] * directions[:, None, :]).reshape(len(strength), 2 * d)
    return World(both, jnp.zeros((2 * d,)), OneAtATime(len(strength)))


def shrunk(
    contributions: Sequence[tuple[float, float]], coefficient: float, norm: str
) -> Float[np.ndarray, "feature 2"]:
    """The contributions at the minimum of a crosscoder loss, by the formulas above.

    Args:
      contributions: (a, b) of each feature.
      coefficient: λ.
      norm: "l1" for the sum of the decoder norms, "l2" for the norm of both together.

    Raises:
      UserError: another norm.
    """
    u = np.asarray(contributions, np.float64)
    if norm == "l1":
        return np.maximum(u - coefficient / 2, 0)
    if norm == "l2":
        length = np.linalg.norm(u, axis=1, keepdims=True)
        return u * np.maximum(1 - coefficient / (2 * np.where(length > 0, length, 1)), 0)
    raise UserError(f'norm={norm!r}: "l1" (sum of the two norms) or "l2" (norm of both together)')
