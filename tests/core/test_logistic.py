"""Logistic regression against Newton's method in float64, and against what must hold at an optimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.core.logistic import fit_logistic


def newton(x, y, weight, C):
    """The optimum of scikit-learn's objective in float64, to the last digits: (w, b)."""
    X, sign = np.column_stack([x, np.ones(len(x))]).astype(np.float64), np.where(y, 1.0, -1.0)
    penalty = np.append(np.ones(x.shape[1]), 0.0)
    value = lambda p: C * weight @ np.logaddexp(0, -sign * (X @ p)) + 0.5 * penalty @ (p * p)
    p = np.zeros(X.shape[1])
    for _ in range(100):
        q = 1 / (1 + np.exp(-np.clip(X @ p, -500, 500)))
        gradient = C * X.T @ (weight * (q - y)) + penalty * p
        hessian = C * (X.T * (weight * q * (1 - q))) @ X + np.diag(penalty)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-9 and value(p - size * step) > value(p):
            size /= 2
        p = p - size * step
        if np.abs(gradient).max() < 1e-11:
            break
    return p[:-1], p[-1]


def problems(seed=0, n=120, d=5, count=4):
    """Problems with columns of very different scales and offsets."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, n, d)) * 10.0 ** rng.uniform(-2, 2, (count, 1, d)) + rng.normal(size=(count, 1, d))
    y = x[..., 0] + x[..., 0].std() * rng.normal(size=(count, n)) > np.median(x[..., 0])
    return x, y, rng.integers(0, 3, (count, n)).astype(float)


@pytest.mark.parametrize("C", [1.0, 0.01])
def test_the_optimum_is_that_of_float64(C):
    x, y, weight = problems()
    fit = fit_logistic(jnp.asarray(x, jnp.float32), jnp.asarray(y), jnp.asarray(weight, jnp.float32), C=C)
    for i in range(len(x)):
        w, b = newton(x[i].astype(np.float32), y[i], weight[i], C)
        scores = x[i] @ w + b
        np.testing.assert_allclose(fit.scores(jnp.asarray(x, jnp.float32))[i], scores, atol=2e-3 * np.abs(scores).max())
        np.testing.assert_allclose(fit.weight[i], w, atol=2e-3 * np.abs(w).max())
    assert float(fit.gradient.max()) < 1e-4


def test_the_optimum_in_float64():
    x, y, weight = problems(1)
    with jax.enable_x64(True):
        fit = fit_logistic(jnp.asarray(x), jnp.asarray(y), jnp.asarray(weight), tolerance=1e-10)
        found = np.asarray(fit.weight), np.asarray(fit.intercept)
    for i in range(len(x)):
        w, b = newton(x[i], y[i], weight[i], 1.0)
        np.testing.assert_allclose(found[0][i], w, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(found[1][i], b, rtol=1e-6, atol=1e-7)


def test_rows_of_weight_0_and_columns_out_of_use_do_not_count():
    x, y, _ = problems(2)
    weight, columns = np.zeros(y.shape, np.float32), np.zeros((len(x), 5), bool)
    weight[:, :80], columns[:, :3] = 1, True
    x[:, 80:], x[:, :, 3:] = np.nan, np.inf
    fit = fit_logistic(jnp.asarray(x, jnp.float32), jnp.asarray(y), jnp.asarray(weight), jnp.asarray(columns))
    for i in range(len(x)):
        w, b = newton(x[i, :80, :3].astype(np.float32), y[i, :80], np.ones(80), 1.0)
        np.testing.assert_allclose(fit.weight[i, :3], w, atol=2e-3 * np.abs(w).max())
        np.testing.assert_allclose(fit.intercept[i], b, atol=2e-3 * (1 + abs(b)))
    assert not fit.weight[:, 3:].any()


def test_without_columns_the_intercept_is_the_log_odds():
    y = jnp.broadcast_to(jnp.arange(120) < 30, (4, 120))
    fit = fit_logistic(jnp.full((4, 120, 5), 7.0), y)  # constant columns tell nothing
    np.testing.assert_allclose(fit.weight, 0, atol=1e-5)
    np.testing.assert_allclose(fit.intercept, np.log(30 / 90), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y | True), "one class only"),
        (lambda x, y: (x.at[0, 3].set(jnp.nan), y), "not finite"),
        (lambda x, y: (x[0], y), "give \\[problem, row, d\\]"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    x, y, _ = problems(3)
    with pytest.raises(UserError, match=message):
        fit_logistic(*change(jnp.asarray(x, jnp.float32), jnp.asarray(y)))
    with pytest.raises(UserError, match="C=0"):
        fit_logistic(jnp.asarray(x, jnp.float32), jnp.asarray(y), C=0)
