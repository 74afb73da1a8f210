"""Logistic regression with an L2 penalty: many problems of one shape in one program.

    C Σᵢ vᵢ log(1 + exp(-sᵢ (xᵢ·w + b))) + ½‖w‖²,        sᵢ = ±1, the sign of the label

This is the objective of scikit-learn's `LogisticRegression`: the intercept b is not penalised. It is strictly convex in
w, so the optimum is one point, and it does not depend on a seed. It is found by L-BFGS, on columns that are centred and
scaled; the penalty is that of the original columns, so the optimum stays the same.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Logistic:
    """Fitted problems. The arrays have the leading axes of the problems."""

    weight: Float[Array, "*problem d"]
    intercept: Float[Array, "*problem"]
    gradient: Float[Array, "*problem"]
    """The largest entry of the gradient at the end, for a loss that is the mean over rows, in scaled columns."""

    def scores(self, x: Float[Array, "*problem row d"]) -> Float[Array, "*problem row"]:
        """x·w + b: the log-odds of the label 1."""
        products = jnp.einsum("...nd,...d->...n", x, self.weight, precision=jax.lax.Precision.HIGHEST)
        return products + self.intercept[..., None]


def fit_logistic(
    x: Float[Array, "problem row d"],
    y: Bool[Array, "problem row"],
    weight: Float[Array, "problem row"] | None = None,
    columns: Bool[Array, "problem d"] | None = None,
    *,
    C: float = 1.0,
    steps: int = 500,
    tolerance: float = 1e-5,
) -> Logistic:
    """Fit many logistic regressions at once.

    Problems of different sizes share one program: rows that a problem does not have get the weight 0, and columns that
    it does not use are False in `columns`. Their entries may be anything finite.

    Args:
      x: the inputs.
      y: the labels.
      weight: the weight of each row; None: 1.
      columns: the columns in use; None: all. The weights w of the others are 0.
      C: the inverse strength of the penalty.
      steps: the largest number of L-BFGS steps.
      tolerance: stop if no entry of the gradient is larger.

    Returns:
      The optimum of each problem. `gradient` says how exactly it was found.

    Raises:
      UserError: shapes do not fit, C is not positive, x is not finite, or a problem has only one class.
    """
    if x.ndim != 3 or y.shape != x.shape[:2]:
        raise UserError(f"x has shape {x.shape} and y {y.shape}: give [problem, row, d] and [problem, row]")
    if not C > 0:
        raise UserError(f"C={C} must be positive: it is the inverse strength of the penalty")
    y = y.astype(bool)
    weight = jnp.ones(y.shape, x.dtype) if weight is None else weight.astype(x.dtype)
    columns = jnp.ones((len(x), x.shape[2]), bool) if columns is None else columns
    n = jnp.stack([jnp.sum(weight, axis=1, where=label) for label in (y, ~y)])
    if bool(jnp.any(n <= 0)):
        raise UserError(f"problem {int(jnp.argmax(jnp.any(n <= 0, axis=0)))} has rows of one class only: give both")
    if not bool(jnp.all(jnp.isfinite(x) | (weight <= 0)[:, :, None] | ~columns[:, None, :])):
        raise UserError("x has entries that are not finite")
    return _fit_all(x, y, weight, columns, jnp.asarray(C, x.dtype), steps=steps, tolerance=tolerance)


@partial(jax.jit, static_argnames=("steps", "tolerance"))
def _fit_all(x: Array, y: Array, weight: Array, columns: Array, C: Array, *, steps: int, tolerance: float) -> Logistic:
    return jax.vmap(partial(_fit, steps=steps, tolerance=tolerance), in_axes=(0, 0, 0, 0, None))(
        x, y, weight, columns, C
    )


class _State(NamedTuple):
    params: Any
    optimizer: optax.OptState
    gradient: Array
    step: Int[Array, ""]


def _fit(x: Array, y: Array, weight: Array, columns: Array, C: Array, *, steps: int, tolerance: float) -> Logistic:
    total = jnp.sum(weight)
    x = jnp.where(columns[None, :] & (weight > 0)[:, None], x, jnp.zeros_like(x))
    mean = weight @ x / total
    centred = x - mean[None, :]
    scale = jnp.sqrt(weight @ (centred * centred) / total)
    scale = jnp.where(scale > 1e-6 * jnp.abs(mean), scale, jnp.ones_like(scale))  # a constant column stays as it is
    centred = centred / scale[None, :]
    sign = jnp.where(y, jnp.ones_like(weight), -jnp.ones_like(weight))
    penalty = 1 / (scale * scale * C * total)

    def objective(params):
        u, c = params
        loss = jax.nn.softplus(-sign * (jnp.matmul(centred, u, precision=jax.lax.Precision.HIGHEST) + c))
        return weight @ loss / total + 0.5 * jnp.sum(penalty * u * u)

    solver = optax.lbfgs(memory_size=10)
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(state: _State) -> _State:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            value, gradient = value_and_grad(state.params, state=state.optimizer)
            updates, optimizer = solver.update(
                gradient, state.optimizer, state.params, value=value, grad=gradient, value_fn=objective
            )
            params = optax.apply_updates(state.params, updates)
        return _State(params, optimizer, _largest(optax.tree.get(optimizer, "grad")), state.step + 1)

    start = (jnp.zeros_like(mean), jnp.zeros((), x.dtype))
    begin = _State(
        start, optimizers.init(solver, start), _largest(jax.grad(objective)(start)), jnp.zeros((), jnp.int32)
    )
    end = jax.lax.while_loop(lambda s: (s.gradient > tolerance) & (s.step < steps), step, begin)
    u, c = end.params
    w = jnp.where(columns, u / scale, jnp.zeros_like(u))
    return Logistic(w, c - jnp.sum(w * mean), end.gradient)


def _largest(gradient: tuple[Array, Array]) -> Array:
    return jnp.maximum(jnp.max(jnp.abs(gradient[0]), initial=0.0), jnp.abs(gradient[1]))
