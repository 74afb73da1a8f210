"""Steps of optax optimizers under any promotion setting, the factors of learning-rate schedules, rows of norm 1.

A schedule of this package is a peak times factors of the step: `linear_warmup`, and `decay` along the run. optax's own
schedules begin at another step or multiply in another order, which changes the last bit of a rate.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float

from jax_interp.core.leaves import PyTree

Decay = Literal["constant", "linear", "cosine", "quarter_cosine"]


def init(optimizer: optax.GradientTransformation, params: PyTree) -> optax.OptState:
    """The optimizer's state for `params`."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return optimizer.init(params)


def update(
    optimizer: optax.GradientTransformation, grads: PyTree, opt_state: optax.OptState, params: PyTree
) -> tuple[PyTree, optax.OptState]:
    """Take one step along the gradients.

    optax mixes int32 counts with floats, which the strict promotion of our tests refuses. Promotion is therefore the
    usual one inside.

    Args:
      optimizer: the optax optimizer.
      grads: gradients with the structure of `params`.
      opt_state: the state of the optimizer, from `init` or the step before.
      params: any pytree of arrays.

    Returns:
      The parameters after the step, with the dtypes and shardings that they had, and the state of the optimizer.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state


def linear_warmup(step: ArrayLike, steps: int) -> Float[Array, ""]:
    """The factor `(step + 1) / steps`, at most 1. It is 1 everywhere where `steps` is 0.

    Args:
      step: the number of the step, from 0.
      steps: the length of the warm-up. Step `steps - 1` is the first one at the full rate.
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum((step + 1) / steps, 1.0) if steps else jnp.ones_like(step)


def decay(kind: Decay, progress: ArrayLike, final: float = 0.0) -> Float[Array, ""]:
    """The factor by which a learning rate has fallen.

    Args:
      kind: "constant": 1. "linear": from 1 to `final`. "cosine": `f + (1 - f) (1 + cos πp) / 2` with f = `final`.
        "quarter_cosine": `cos πp / 2`, which ends at 0.
      progress: p, the fraction of the decay that is done. It is clipped to [0, 1].
      final: the factor at the end.
    """
    progress = jnp.clip(jnp.asarray(progress, jnp.float32), 0.0, 1.0)
    if kind == "linear":
        return 1 + (final - 1) * progress
    if kind == "cosine":
        return final + (1 - final) * 0.5 * (1 + jnp.cos(math.pi * progress))
    return jnp.cos(0.5 * math.pi * progress) if kind == "quarter_cosine" else jnp.ones_like(progress)


def unit_rows(W: Float[Array, "feature d"]) -> Float[Array, "feature d"]:
    """Rows scaled to norm 1. A row of norm 0 stays 0.

    A dictionary whose decoder rows are free can shrink its latents and grow its decoder at no cost.
    """
    norm = jnp.sqrt(jnp.sum(W * W, axis=-1, keepdims=True))
    return W / jnp.where(norm > 0, norm, jnp.ones_like(norm))


def without_parallel(g: Float[Array, "feature d"], W: Float[Array, "feature d"]) -> Float[Array, "feature d"]:
    """`g` without its component along each row of `W`, whose rows have norm 1.

    `unit_rows` undoes that part of a step. It is taken out of the gradient first, or it would enter Adam's moments.
    """
    return g - jnp.sum(g * W, axis=-1, keepdims=True) * W
