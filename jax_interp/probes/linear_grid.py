"""Logistic and softmax regressions of one site, for all labels, splits and strengths, in one descent."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.linear_models import HIGH, LinearFit, fit_linear
from jax_interp.probes.class_weights import balanced_weights

ClassWeight = Literal["balanced"] | None
CONSTANT = 1e-5  # a column whose deviation is smaller than this share of its size does not vary


def fit_grid(
    x: Float[Array, "row d"],
    y: Int[Array, "labels row"],
    weight: Float[Array, "split row"],
    C: Float[Array, " strength"],
    *,
    classes: int,
    bias: bool,
    standardise: bool,
    class_weight: ClassWeight,
) -> tuple[LinearFit, tuple[int, int, int]]:
    """Fit one regression for each set of labels, split and strength.

    Args:
      x: the rows.
      y: the class of each row.
      weight: the weight of each row; 0 leaves the row out.
      C: the inverse strengths of the penalty.
      classes: the number of classes. 2: one output; more: one output for each class.
      bias: whether there is an intercept.
      standardise: whether the penalty is that of columns with the deviation 1 in the training rows. With an intercept
        their mean does not matter; without one they are not centred.
      class_weight: "balanced": classes count alike.

    Returns:
      The regressions, one axis for all problems, and the sizes of its parts (labels, split, strength).
    """
    x = x.astype(jnp.float32)
    sizes = (y.shape[0], weight.shape[0], C.shape[0])
    every = (*sizes, x.shape[0])
    of_row = jnp.broadcast_to(y[:, None, None, :], every).reshape(-1, every[-1])
    weights = jnp.broadcast_to(weight[None, :, None, :], every).reshape(-1, every[-1])
    strengths = jnp.broadcast_to(C[None, None, :], sizes).reshape(-1)
    scale = None
    if standardise:
        inverse = 1 / deviations(x, weight)
        scale = jnp.broadcast_to(inverse[None, :, None, :], (*sizes, x.shape[1])).reshape(-1, x.shape[1])
    if class_weight == "balanced":
        weights = balanced_weights(of_row, weights, classes)
    outputs = 1 if classes == 2 else classes
    return fit_linear(x, of_row, weights, strengths, outputs=outputs, bias=bias, scale=scale), sizes


def deviations(x: Float[Array, "row d"], weight: Float[Array, "split row"]) -> Float[Array, "split d"]:
    """The standard deviation of each column over the rows of each split; 1 if the column does not vary."""
    x = jnp.where(jnp.any(weight > 0, axis=0)[:, None], x, jnp.zeros_like(x))
    share = weight / jnp.sum(weight, axis=1, keepdims=True)
    middle = jnp.mean(share, axis=0) @ x  # a shift near all means, so that squares do not cancel
    shifted = x - middle[None, :]
    mean = jnp.matmul(share, shifted, precision=HIGH)
    variance = jnp.matmul(share, shifted * shifted, precision=HIGH) - mean * mean
    deviation = jnp.sqrt(jnp.maximum(variance, 0.0))
    return jnp.where(deviation > CONSTANT * jnp.abs(mean + middle[None, :]), deviation, jnp.ones_like(deviation))


def check_strengths(name: str, field: str, values: tuple[float, ...], *, zero: bool = False) -> None:
    """Raise UserError if a strength is missing or not a positive number.

    Args:
      name: the name of the kind.
      field: the name of the field.
      values: the strengths.
      zero: whether 0 is allowed.
    """
    wrong = [value for value in values if not (value >= 0 if zero else value > 0) or value == float("inf")]
    if not values or wrong:
        least = "at least 0" if zero else "above 0"
        raise UserError(f"{name}({field}={values}): give one or more finite numbers {least}")
