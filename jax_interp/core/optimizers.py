"""Optimizer steps with optax, factors of learning-rate schedules, and unit-norm rows.

A learning rate in this package is a peak rate times two factors: `linear_warmup`, and `decay` over the run. The
schedules of optax start at another step or multiply in another order, which changes the last bit of the rate.
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
    optimizer: optax.GradientTransformation,
    grads: PyTree,
    opt_state: optax.OptState,
    params: PyTree,
    rate_scale: ArrayLike | None = None,
) -> tuple[PyTree, optax.OptState]:
    """Take one step along the gradients.

    optax mixes int32 counts with floats. This function therefore uses JAX's standard type promotion, even if the caller
    has switched on strict promotion.

    Args:
      optimizer: the optax optimizer.
      grads: gradients with the structure of `params`.
      opt_state: the state of the optimizer, from `init` or the previous step.
      params: any pytree of arrays.
      rate_scale: a factor of the learning rate, which may be traced: the whole update is multiplied by it. None: 1.

    Returns:
      The parameters after the step, with unchanged dtypes and shardings, and the new state of the optimizer.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        updates, opt_state = optimizer.update(grads, opt_state, params)
        if rate_scale is not None:
            updates = jax.tree.map(lambda u: u * rate_scale, updates)
        return optax.apply_updates(params, updates), opt_state


def linear_warmup(step: ArrayLike, steps: int) -> Float[Array, ""]:
    """The factor `(step + 1) / steps`, at most 1. If `steps` is 0, the factor is always 1.

    Args:
      step: the number of the step, from 0.
      steps: the length of the warm-up. Step `steps - 1` is the first step at the full rate.
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum((step + 1) / steps, 1.0) if steps else jnp.ones_like(step)


def decay(kind: Decay, progress: ArrayLike, final: float = 0.0) -> Float[Array, ""]:
    """The decay factor of a learning rate.

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
    """Scale each row to norm 1. A row of norm 0 stays 0.

    Without this constraint, a dictionary can lower a penalty on its latents by scaling them down and its decoder up.
    """
    norm = jnp.sqrt(jnp.sum(W * W, axis=-1, keepdims=True))
    return W / jnp.where(norm > 0, norm, jnp.ones_like(norm))


def without_parallel(g: Float[Array, "feature d"], W: Float[Array, "feature d"]) -> Float[Array, "feature d"]:
    """Remove from each row of `g` its component along the same row of `W`. The rows of `W` have norm 1.

    `unit_rows` undoes this component after a step. It is removed before the step to keep it out of Adam's moments.
    """
    return g - jnp.sum(g * W, axis=-1, keepdims=True) * W
