"""Least squares with and without an L2 penalty, for kinds of probes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

HIGH = jax.lax.Precision.HIGHEST


class Centred(NamedTuple):
    """Rows of one split, multiplied with the roots of their weights and centred if there is an intercept."""

    x: Float[Array, "row d"]
    y: Float[Array, "labels row"]
    x_mean: Float[Array, " d"]
    y_mean: Float[Array, " labels"]


def centred(
    x: Float[Array, "row d"], y: Float[Array, "labels row"], weight: Float[Array, " row"], bias: bool
) -> Centred:
    """Reduce weighted least squares with an intercept to plain least squares."""
    x = jnp.where((weight > 0)[:, None], x, jnp.zeros_like(x))
    share, root = weight / jnp.sum(weight), jnp.sqrt(weight)
    x_mean = jnp.matmul(share, x, precision=HIGH) if bias else jnp.zeros_like(x[0])
    y_mean = jnp.matmul(y, share, precision=HIGH) if bias else jnp.zeros_like(y[:, 0])
    of_x = (x - x_mean[None, :]) * root[:, None]
    return Centred(of_x, (y - y_mean[:, None]) * root[None, :], x_mean, y_mean)


def with_intercept(
    weight: Float[Array, "*problem labels d"], rows: Centred
) -> tuple[Float[Array, "*problem labels d"], Float[Array, "*problem labels"]]:
    """(weights, intercepts)."""
    shift = jnp.matmul(weight, rows.x_mean, precision=HIGH)
    return weight, rows.y_mean.reshape((1,) * (shift.ndim - 1) + (-1,)) - shift


def ridge(rows: Centred, alpha: Float[Array, " strength"]) -> Float[Array, "strength labels d"]:
    """argmin ‖y - Xw‖² + α‖w‖², by Cholesky factors of the smaller Gram matrix.

    The solution is refined twice with residuals of X itself, because a Gram matrix has the square of X's condition.
    """
    x, y = rows.x, rows.y
    dot = lambda a, b: jnp.matmul(a, b, precision=HIGH)
    wide = x.shape[0] < x.shape[1]
    gram = dot(x, x.T) if wide else dot(x.T, x)

    def one(alpha: Array) -> Array:
        factor = jax.scipy.linalg.cho_factor(gram + alpha * jnp.eye(len(gram), dtype=gram.dtype), lower=True)
        solve = lambda b: jax.scipy.linalg.cho_solve(factor, b.T).T
        if wide:
            dual = jnp.zeros_like(y)
            for _ in range(3):
                dual = dual + solve(y - dot(dot(dual, x), x.T) - alpha * dual)
            return dot(dual, x)
        w = jnp.zeros((y.shape[0], x.shape[1]), x.dtype)
        for _ in range(3):
            w = w + solve(dot(y - dot(w, x.T), x) - alpha * w)
        return w

    return jax.lax.map(one, alpha)


def minimum_norm(rows: Centred) -> Float[Array, "labels d"]:
    """The solution of least squares with the smallest norm.

    Singular values below the precision of float32, times the larger size of X, times the largest one, count as 0.
    """
    u, s, vt = jnp.linalg.svd(rows.x, full_matrices=False)
    smallest = jnp.finfo(s.dtype).eps * max(rows.x.shape) * jnp.max(s, initial=0.0)
    inverse = jnp.where(s > smallest, 1 / jnp.where(s > smallest, s, 1.0), 0.0)
    return jnp.matmul(jnp.matmul(rows.y, u, precision=HIGH) * inverse[None, :], vt, precision=HIGH)
