"""The norm of steering vectors at which a model is no longer linear in them.

    ratio(R)² = mean over random unit vectors v of  ‖Δ(R v) - R J v‖² / ‖R J v‖²

The calibrated R has the ratio 0.5 (Mack and Turner 2024, deep causal transcoding). Below it, vectors only add up what
the Jacobian says; far above it, the model leaves what it was trained on.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.steering.elicitation.derivatives import jacobian_times
from jax_interp.steering.elicitation.effects import Prompts, each, mean_change
from jax_interp.steering.elicitation.sphere import random_on_sphere
from jax_interp.surgery import Model
from jax_interp.training import automatic

DOUBLINGS = 24


def calibrated_radius(
    model: Model,
    prompts: Prompts,
    key: Key[Array, ""],
    *,
    ratio: float = 0.5,
    draws: int = 30,
    at_once: int | None = None,
) -> float:
    """The norm R at which the part of Δ that is not linear is `ratio` times the linear part. It is found by bisection.

    Args:
      model: the model.
      prompts: the prompts and the addresses.
      key: the key of the random vectors.
      ratio: the ratio at which to stop.
      draws: the number of random vectors.
      at_once: the number of vectors in one pass of the model. None: all.

    Raises:
      UserError: the Jacobian is zero, or no norm between 2^-24 and 2^24 has this ratio, as for a linear map.
    """
    vectors = random_on_sphere(key, (draws, prompts.width), 1.0)
    at = lambda exponent: float(_ratio(at_once, model, prompts, vectors, jnp.asarray(2.0**exponent, jnp.float32)))
    low = high = 0.0
    if not math.isfinite(value := at(0.0)):
        raise UserError(f"the effect at {prompts.where.target} has no finite ratio to its linear part: is J zero?")
    if value < ratio:
        while at(high) < ratio:
            low, high = high, high + 1.0
            _check(high, ratio, "linear in the vectors")
    else:
        while at(low) >= ratio:
            low, high = low - 1.0, low
            _check(low, ratio, "not smooth at 0, or the precision of the model is too low")
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) < ratio else (low, middle)
    return 2.0**high


def _check(exponent: float, ratio: float, why: str) -> None:
    if abs(exponent) > DOUBLINGS:
        raise UserError(f"no norm has the ratio {ratio}: the target is {why}. Give radius= yourself")


def _ratio_at(
    at_once: int | None, model: Model, prompts: Prompts, vectors: Float[Array, "n d"], radius: Float[Array, ""]
) -> Float[Array, ""]:
    change = partial(mean_change, model, prompts)

    def of_one(v: Array) -> Array:
        first = radius * jacobian_times(change, v)
        return jnp.sum((change(radius * v) - first) ** 2) / jnp.sum(first**2)

    return jnp.sqrt(jnp.mean(each(of_one, vectors, at_once)))


_ratio = jax.jit(automatic(_ratio_at), static_argnums=0)
