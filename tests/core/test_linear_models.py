"""Many logistic and softmax regressions on the same rows, against Newton's method in float64."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.linear_models import fit_linear

STRENGTHS = np.array([1e-4, 1e-2, 1.0, 1e2, 1e4], np.float32)


def newton(x: np.ndarray, y: np.ndarray, weight: np.ndarray, C: float, outputs: int, bias: bool):
    """The optimum of C Σ v ℓ + ½‖W‖² in float64: (W [out, d], b [out])."""
    n, d = x.shape
    X = np.column_stack([x, np.full(n, float(bias))])
    target = y[:, None] == (np.arange(outputs) if outputs > 1 else np.array([1]))
    penalty = np.tile(np.append(np.ones(d), 1e-9 * C), outputs)  # no intercept, or one with a free sum
    p = np.zeros((outputs, d + 1))

    def probabilities(p):
        z = X @ p.T
        if outputs == 1:
            return np.exp(-np.logaddexp(0, -z)), np.exp(-np.logaddexp(0, z))
        q = np.exp(z - np.logaddexp.reduce(z, axis=1)[:, None])
        return q, q @ (1 - np.eye(outputs))

    def value(p):
        z = X @ p.T
        loss = np.logaddexp(0, np.where(target, -z, z)) if outputs == 1 else None
        each = loss[:, 0] if outputs == 1 else np.logaddexp.reduce(z, axis=1) - z[np.arange(n), y]
        return C * weight @ each + 0.5 * penalty @ (p.ravel() ** 2)

    for _ in range(200):
        q, others = probabilities(p)
        gradient = C * (weight[:, None] * np.where(target, -others, q)).T @ X + (penalty * p.ravel()).reshape(p.shape)
        blocks = [[
            C * (X.T * (weight * q[:, i] * (others[:, i] if i == j else -q[:, j]))) @ X for j in range(outputs)
        ] for i in range(outputs)]  # fmt: skip
        step = np.linalg.solve(np.block(blocks) + np.diag(penalty), gradient.ravel()).reshape(p.shape)
        size = 1.0
        while size > 1e-8 and value(p - size * step) > value(p):
            size /= 2
        p = p - size * step
        if np.abs(step).max() <= 1e-8 * np.abs(p).max():
            break
    return p[:, :-1], p[:, -1]


def rows(n: int, d: int, outputs: int, seed: int):
    """Columns of different scale and mean, two sets of labels, two sets of weights with zeros."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * 10 ** rng.uniform(-0.7, 0.7, d) + rng.normal(size=d)
    x = x @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    z = (x - x.mean(0)) @ rng.normal(size=(d, 2, max(outputs, 2))).reshape(d, -1) / np.sqrt(d)
    y = (z + rng.normal(size=z.shape)).reshape(n, 2, -1).argmax(-1).T
    return x.astype(np.float32), y.astype(np.int32), rng.integers(0, 3, (2, n)).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize(("n", "d"), [(250, 8), (20, 36)])
def test_every_problem_has_the_optimum_of_float64(n, d, outputs, bias):
    x, y, weight = rows(n, d, outputs, seed=n + outputs)
    labels, weights = np.repeat(y, len(STRENGTHS), 0), np.repeat(weight, len(STRENGTHS), 0)
    strengths = np.tile(STRENGTHS, 2)
    fit = jax.jit(partial(fit_linear, outputs=outputs, bias=bias))(x, labels, weights, strengths)
    assert bool(fit.converged.all()), np.asarray(fit.error)
    for i, C in enumerate(strengths):
        w, b = newton(x.astype(np.float64), labels[i], weights[i].astype(np.float64), float(C), outputs, bias)
        scores, found = x @ w.T + b, x.astype(np.float64) @ np.asarray(fit.weight[i]).T + np.asarray(fit.bias[i])
        if outputs > 1:  # what is added to all classes changes nothing
            scores, found = (s - s.mean(axis=1, keepdims=True) for s in (scores, found))
        np.testing.assert_allclose(found, scores, atol=1e-4 * np.abs(scores).max())
        np.testing.assert_allclose(fit.weight[i], w, atol=1e-4 * np.abs(w).max())


@pytest.mark.parametrize("case", ["separable", "constant", "huge", "spread"])
def test_hard_rows(case):
    """Separable classes, constant columns, entries of 1e6, and columns whose scales differ by 1e6."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(120, 6)), np.arange(120) % 2
    x[:, 0] += {"separable": 8.0, "constant": 1.0, "huge": 1.0, "spread": 1.0}[case] * (2 * y - 1)
    strength = 1.0
    if case == "constant":
        x[:, 2:4] = [7.0, -300.0]
    if case == "huge":
        x, strength = 1e6 * x, 1e-12
    if case == "spread":
        x *= 10.0 ** np.arange(-3, 3)
    x = x.astype(np.float32)
    C = np.array([0.01, 1.0, 1e4], np.float32) * np.float32(strength)
    fit = jax.jit(fit_linear)(x, np.tile(y.astype(np.int32), (3, 1)), np.ones((3, 120), np.float32), C)
    assert bool(fit.converged.all()), (np.asarray(fit.error), np.asarray(fit.steps))
    for i in range(3):
        w, b = newton(x.astype(np.float64), y, np.ones(120), float(C[i]), 1, True)
        scores = x @ w.T + b
        found = x.astype(np.float64) @ np.asarray(fit.weight[i]).T + np.asarray(fit.bias[i])
        np.testing.assert_allclose(found, scores, atol=1e-4 * np.abs(scores).max())


def test_too_few_steps_are_reported():
    x, y, _ = rows(250, 8, 1, seed=0)
    fit = jax.jit(partial(fit_linear, steps=3))(x, y, np.ones(y.shape, np.float32), np.array([1e4, 1e4], np.float32))
    assert not fit.converged.any()
    assert (np.asarray(fit.gradient) > 1e-6).all()


def test_rows_of_weight_0_may_hold_anything():
    x, y, weight = rows(250, 8, 1, seed=1)
    weight = np.repeat(weight[:1], 2, 0)
    spoilt = np.where((weight[0] == 0)[:, None], np.nan, x)
    fit = jax.jit(fit_linear)
    one, other = fit(x, y, weight, jnp.ones(2)), fit(spoilt, y, weight, jnp.ones(2))
    np.testing.assert_array_equal(one.weight, other.weight)
