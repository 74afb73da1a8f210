"""Linear models with a logistic or softmax loss and an L2 penalty: many problems on the same rows, in one program.

    C Σᵢ vᵢ ℓ(W xᵢ + b, yᵢ) + ½‖W‖²

This is the objective of scikit-learn's `LogisticRegression`; the intercept b is not penalised. It is strictly convex in
W, so the optimum does not depend on a seed.

All problems take a step of L-BFGS together, so the rows are read twice in each step, however many problems there are:
once for the scores of a direction and once for the gradient. The line search works on these scores and reads no rows.
It looks for a slope near 0, not for a smaller value, because in float32 slopes stay exact where values are too close
to tell apart. The first approximation of the inverse Hessian has the leading eigenvectors of the rows' covariance, as
in Nyström preconditioning (Frangella, Tropp & Udell 2021, arXiv:2110.02820). Activations have a few directions of very
large variance, and plain L-BFGS would need many steps for them.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.pytrees import register_dataclass

HISTORY = 10  # the pairs that L-BFGS keeps
EIGENVECTORS = 96
TOLERANCE = 3e-6
EXACT = 1e-4  # a larger estimated error is reported as not converged
HIGH = jax.lax.Precision.HIGHEST


@register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearFit:
    """The optimum of each problem, and how exactly it was found.

    Args:
      weight: W, for raw rows.
      bias: b.
      error: the estimated distance to the optimum: the relative change of the weights or of the scores in the last
        step, whichever is larger.
      gradient: the largest entry of the gradient of the objective divided by C Σv.
      converged: whether `error` became small enough.
      steps: the number of steps.
    """

    weight: Float[Array, "problem out d"]
    bias: Float[Array, "problem out"]
    error: Float[Array, " problem"]
    gradient: Float[Array, " problem"]
    converged: Bool[Array, " problem"]
    steps: Int[Array, " problem"]


class _Problems(NamedTuple):
    """What stays the same during the descent."""

    x: Array  # [row, d], centred if there is a bias
    xt: Array  # its transpose, stored
    target: Array  # [problem, out, row]: for one output 0 or 1, else one-hot
    weight: Array  # [problem, row], with sum 1
    ridge: Array  # [problem]: 1 / (C Σv)
    scale: Array  # [problem, d]: W = scale · U, and the penalty is on U
    vectors: Array  # [d, k]: leading eigenvectors of the covariance
    values: Array  # [k]
    rest: Array  # []: the mean of the other eigenvalues
    with_bias: Array  # []: 1 or 0


class _State(NamedTuple):
    u: Array  # [problem, out, d + 1]: the weights in penalised units, and the bias
    z: Array  # [problem, out, row]: the scores
    g: Array  # the gradient, like u
    s: Array  # [history, problem, out, d + 1]: steps
    y: Array  # changes of the gradient
    step: Array
    steps: Array  # [problem]
    error: Array  # [problem]
    small: Array  # [problem]: how many steps in a row were small
    active: Array  # [problem]


def fit_linear(
    x: Float[Array, "row d"],
    y: Int[Array, "problem row"],
    weight: Float[Array, "problem row"],
    C: Float[Array, " problem"],
    *,
    outputs: int = 1,
    bias: bool = True,
    scale: Float[Array, "problem d"] | None = None,
    steps: int = 1000,
) -> LinearFit:
    """Fit all problems. A pure function for use inside `jit`: it checks nothing.

    Args:
      x: the rows, which all problems share.
      y: the class of each row: 0 or 1 if there is one output, else a number below `outputs`.
      weight: the weight v of each row; 0 leaves the row out. A row of weight 0 in all problems may hold anything.
      C: the inverse strength of the penalty.
      outputs: 1 for logistic regression; the number of classes for softmax regression.
      bias: whether there is an intercept.
      scale: the penalty is on W / scale: a column that is divided by its deviation has its inverse as scale. None: 1.
      steps: the largest number of steps. A problem is done before if three steps in a row changed its weights and its
        scores by less than `TOLERANCE` of their norms.
    """
    used = jnp.any(weight > 0, axis=0)
    x = jnp.where(used[:, None], x, jnp.zeros_like(x))
    total = jnp.sum(weight, axis=1)
    share = weight / total[:, None]
    of_row = jnp.mean(share, axis=0)
    mean = jnp.matmul(of_row, x, precision=HIGH) if bias else jnp.zeros_like(x[0])
    x = jnp.where(used[:, None], x - mean[None, :], jnp.zeros_like(x))
    scale = jnp.ones((y.shape[0], x.shape[1]), x.dtype) if scale is None else scale
    vectors, values, rest = _leading(x * jnp.mean(scale, axis=0)[None, :], of_row)
    classes = jnp.arange(outputs, dtype=y.dtype) if outputs > 1 else jnp.ones(1, y.dtype)
    target = (y[:, None, :] == classes[None, :, None]).astype(x.dtype)
    xt = jax.lax.optimization_barrier(x.T)  # stored, because a product with a transposed view is slow
    problems = _Problems(
        x, xt, target, share, 1 / (C * total), scale, vectors, values, rest, jnp.full((), bias, x.dtype)
    )  # fmt: skip
    end = _descend(problems, steps)
    w = end.u[..., :-1] * scale[:, None, :]
    b = end.u[..., -1] - jnp.einsum("pkd,d->pk", w, mean, precision=HIGH)
    if outputs > 1:  # at the optimum the classes sum to 0; where the penalty is weak the descent leaves a remainder
        w, b = w - jnp.mean(w, axis=1, keepdims=True), b - jnp.mean(b, axis=1, keepdims=True)
    largest = jnp.max(jnp.abs(end.g), axis=(1, 2))
    return LinearFit(w, b, end.error, largest, ~end.active & (end.error <= EXACT), end.steps)


def _leading(x: Array, weight: Array) -> tuple[Array, Array, Array]:
    """The leading eigenvectors of Σ weight x xᵀ, by one step of subspace iteration; and the mean of the rest."""
    n, d = x.shape
    k = min(EIGENVECTORS, d, n)
    root = x * jnp.sqrt(weight)[:, None]
    largest = jnp.max(jnp.abs(root))
    size = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    root = root / size  # squares of large entries do not overflow
    start = jax.random.normal(jax.random.key(0), (d, k), x.dtype)
    product = lambda a, b: jnp.matmul(a, b, precision=HIGH)
    span = jnp.linalg.qr(product(root.T, product(root, start)))[0]
    image = product(root, span)
    values, rotation = jnp.linalg.eigh(product(image.T, image))
    others = jnp.maximum(jnp.sum(root * root) - jnp.sum(values), 0.0) / max(min(n, d) - k, 1)
    least = 1e-5 * jnp.max(values)  # smaller ones are rounding, which an inverse would blow up
    values, others = jnp.maximum(values, least), jnp.maximum(others, least)
    return product(span, rotation), values * size * size, others * size * size


def _descend(problems: _Problems, steps: int) -> _State:
    p, k, _ = problems.target.shape
    u = jnp.zeros((p, k, problems.x.shape[1] + 1), problems.x.dtype)
    z = jnp.zeros_like(problems.target)
    pairs = jnp.zeros((HISTORY, *u.shape), u.dtype)
    count = jnp.zeros(p, jnp.int32)
    start = _State(
        u, z, _gradient(problems, u, z), pairs, pairs, jnp.zeros((), jnp.int32), count, jnp.full(p, jnp.inf, u.dtype),
        count, jnp.ones(p, bool),
    )  # fmt: skip
    more = lambda state: jnp.any(state.active) & (state.step < steps)
    return jax.lax.while_loop(more, partial(_step, problems), start)


def _step(problems: _Problems, state: _State) -> _State:
    direction = _direction(problems, state)
    downhill = _dot(direction, state.g) < 0
    change = _scores(problems, direction)
    size = _line_search(problems, state, direction, change)
    size = jnp.where(state.active & downhill, size, jnp.zeros_like(size))
    moved = size[:, None, None] * direction
    u = state.u + moved
    z = state.z + size[:, None, None] * change
    z = jax.lax.cond(state.step % 16 == 15, lambda: _scores(problems, u), lambda: z)  # against the drift of sums
    g = _gradient(problems, u, z)
    at = state.step % HISTORY
    norm = lambda a, weight=None: jnp.sqrt(_dot(a, a, weight))
    relative = lambda a, b: a / jnp.where(b > 0, b, jnp.ones_like(b))
    tried = jnp.where(downhill, size, jnp.ones_like(size))  # at the last digit a direction may point uphill
    error = tried * jnp.maximum(
        relative(norm(direction[..., :-1]), norm(u[..., :-1])),
        relative(norm(change, problems.weight), jnp.maximum(norm(z, problems.weight), 1e-3)),
    )
    proved = norm(g) <= TOLERANCE * problems.ridge * norm(u[..., :-1])  # the penalty bounds the Hessian from below
    error = jnp.where(proved, jnp.minimum(error, TOLERANCE), error)
    small = jnp.where(error <= TOLERANCE, state.small + 1, jnp.zeros_like(state.small))
    active = state.active & downhill & (small < 3) & ~proved
    return _State(
        u, z, g, state.s.at[at].set(moved), state.y.at[at].set(g - state.g), state.step + 1,
        jnp.where(state.active, state.step + 1, state.steps), jnp.where(state.active, error, state.error), small,
        active,
    )  # fmt: skip


def _direction(problems: _Problems, state: _State) -> Array:
    """-H g with the approximate inverse Hessian H of L-BFGS."""
    latest = (state.step - 1 - jnp.arange(HISTORY)) % HISTORY
    curvature = jax.vmap(_dot)(state.s, state.y)
    kept = curvature > 0
    inverse = jnp.where(kept, 1 / jnp.where(kept, curvature, 1.0), 0.0)

    def back(v: Array, i: Array) -> tuple[Array, Array]:
        a = inverse[i] * _dot(state.s[i], v)
        return v - a[:, None, None] * state.y[i], a

    def forth(v: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        i, a = pair
        b = inverse[i] * _dot(state.y[i], v)
        return v + (a - b)[:, None, None] * state.s[i], None

    v, a = jax.lax.scan(back, state.g, latest)
    v = _precondition(problems, state, v)
    v = jax.lax.scan(forth, v, (latest[::-1], a[::-1]))[0]
    return -v


def _precondition(problems: _Problems, state: _State, v: Array) -> Array:
    """(κ Σ + ridge)⁻¹ v, where κ is the mean curvature of the loss at the scores, and Σ the rows' covariance."""
    q, others = _probabilities(state.z)
    kappa = jnp.maximum(_dot(q, others, problems.weight) / q.shape[1], 1e-9)
    inverse = lambda value: 1 / (kappa[:, None] * value + problems.ridge[:, None])
    rest = inverse(problems.rest)
    known = inverse(problems.values[None, :]) - rest
    part = jnp.matmul(v[..., :-1], problems.vectors, precision=HIGH) * known[:, None, :]
    part = jnp.matmul(part, problems.vectors.T, precision=HIGH)
    return jnp.concatenate([rest[..., None] * v[..., :-1] + part, v[..., -1:] / kappa[:, None, None]], axis=-1)


def _line_search(problems: _Problems, state: _State, direction: Array, change: Array) -> Array:
    """The size of the step at which the slope is at most a tenth of the slope at 0: Newton steps in a bracket."""
    linear = problems.ridge * _dot(state.u[..., :-1], direction[..., :-1])
    square = problems.ridge * _dot(direction[..., :-1], direction[..., :-1])
    at_zero = jnp.abs(_dot(state.g, direction))

    def slopes(t: Array) -> tuple[Array, Array]:
        z = state.z + t[:, None, None] * change
        q, others = _probabilities(z)
        first = _dot(_residual(z, problems.target), change, problems.weight) + linear + t * square
        if z.shape[1] == 1:
            bend = _dot(q * others * change, change, problems.weight)
        else:
            centred = change - jnp.sum(q * change, axis=1, keepdims=True)
            bend = _dot(q * centred, centred, problems.weight)
        return first, bend + square

    def more(loop: tuple[Array, ...]) -> Array:
        _, _, _, first, _, trial = loop
        return jnp.any(state.active & (jnp.abs(first) > 0.1 * at_zero)) & (trial < 25)

    def again(loop: tuple[Array, ...]) -> tuple[Array, ...]:
        t, low, high, first, second, trial = loop
        low, high = jnp.where(first < 0, t, low), jnp.where(first < 0, high, t)
        newton = t - first / jnp.where(second > 0, second, jnp.ones_like(second))
        middle = jnp.where(jnp.isfinite(high), 0.5 * (low + high), 4 * t)
        inside = (newton > low) & (newton < high) & (newton < 10 * t) & (second > 0)
        new = jnp.where(jnp.abs(first) > 0.1 * at_zero, jnp.where(inside, newton, middle), t)
        return (new, low, high, *slopes(new), trial + 1)

    one = jnp.ones_like(linear)
    start = (one, 0 * one, jnp.inf * one, *slopes(one), jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(more, again, start)[0]


def _scores(problems: _Problems, u: Array) -> Array:
    """X W + b."""
    p, k, _ = u.shape
    w = (u[..., :-1] * problems.scale[:, None, :]).reshape(p * k, -1)
    return _times(problems.x, w).reshape(p, k, -1) + u[..., -1:]


def _gradient(problems: _Problems, u: Array, z: Array) -> Array:
    p, k, n = z.shape
    r = problems.weight[:, None, :] * _residual(z, problems.target)
    of_u = _times(problems.xt, r.reshape(p * k, n)).reshape(p, k, -1) * problems.scale[:, None, :]
    of_b = problems.with_bias * jnp.sum(r, axis=-1, keepdims=True)
    return jnp.concatenate([of_u + problems.ridge[:, None, None] * u[..., :-1], of_b], axis=-1)


def _times(matrix: Array, rows: Array) -> Array:
    """rows · matrixᵀ. XLA's product of a large matrix with a few columns is fast, and one with a few rows is slow."""
    return jnp.matmul(matrix, rows.T, precision=HIGH).T


def _probabilities(z: Array) -> tuple[Array, Array]:
    """The probability of each output, and that of the others: exact also where it is far below 1e-7."""
    if z.shape[1] == 1:
        return jax.nn.sigmoid(z), jax.nn.sigmoid(-z)
    q = jax.nn.softmax(z, axis=1)
    return q, jnp.einsum("pkn,kj->pjn", q, 1 - jnp.eye(z.shape[1], dtype=z.dtype), precision=HIGH)


def _residual(z: Array, target: Array) -> Array:
    """The derivative of the loss, q - target."""
    q, others = _probabilities(z)
    return jnp.where(target > 0, -others, q)


def _dot(a: Array, b: Array, weight: Array | None = None) -> Array:
    """For each problem, the sum of a · b over outputs and rows (or columns)."""
    return jnp.sum(a * b if weight is None else a * b * weight[:, None, :], axis=(1, 2))
