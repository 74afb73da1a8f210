"""A two-model world in which the answers of the crosscoder losses are known.

Each row holds one feature, which is in model 0 with contribution a and in model 1 with contribution b along the same
direction. For such isolated features the losses decouple, and the contributions that a crosscoder ends with (latent
times decoder) are:

    SSE + λ Σ f (‖d^0‖ + ‖d^1‖)        max(a - λ/2, 0) and max(b - λ/2, 0): the weaker one vanishes where b < λ/2
    SSE + λ Σ f √(‖d^0‖² + ‖d^1‖²)     (a, b) · max(1 - λ / (2 ‖(a, b)‖), 0): the ratio stays, no model is dropped alone
    SSE with a fixed number of latents  (a, b)

so long as each feature is rare: what is common, the bias b_dec takes up. λ is in units of SSE and of the contributions
as the crosscoder is given them, after any scaling of its inputs.

A shared feature that the L1 loss calls exclusive is "complete shrinkage"; latent_scaling.py tells it from a real one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.toys.synthetic.world import World, orthonormal_directions


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneAtATime:
    """Every row has one feature on, at strength 1, all equally likely."""

    n_features: int = dataclasses.field(metadata={"static": True})

    def __call__(self, key: Key[Array, ""], n: int) -> Float[Array, "n feature"]:
        return jax.nn.one_hot(jax.random.randint(key, (n,), 0, self.n_features), self.n_features)


def two_models(
    key: Key[Array, ""],
    contributions: Sequence[tuple[float, float]] = ((1, 1), (1, 0.3), (1, 0), (0, 1)),
    d: int = 16,
) -> World:
    """directions [feature, 2·d], model 0 first; feature i contributes `contributions[i]` to the two models. The
    default: shared, weaker in model 1, exclusive to model 0, exclusive to model 1."""
    strength = jnp.asarray(contributions, jnp.float32)
    directions = orthonormal_directions(key, len(strength), d)
    both = (strength[:, :, None] * directions[:, None, :]).reshape(len(strength), 2 * d)
    return World(both, jnp.zeros((2 * d,)), OneAtATime(len(strength)))


def shrunk(
    contributions: Sequence[tuple[float, float]], coefficient: float, norm: str
) -> Float[np.ndarray, "feature 2"]:
    """What the L1-of-norms ("l1") or the L2-of-norms ("l2") loss makes of `contributions` at coefficient λ."""
    u = np.asarray(contributions, np.float64)
    if norm == "l1":
        return np.maximum(u - coefficient / 2, 0)
    if norm == "l2":
        length = np.linalg.norm(u, axis=1, keepdims=True)
        return u * np.maximum(1 - coefficient / (2 * np.where(length > 0, length, 1)), 0)
    raise ValueError(f'norm={norm!r}: "l1" (sum of the two norms) or "l2" (norm of the two together)')
