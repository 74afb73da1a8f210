"""The objectives against numpy in float64, in every floating dtype, and where nothing is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core import objectives

LOGITS = 5 * np.random.default_rng(0).standard_normal((2, 3, 7))
OTHER = 5 * np.random.default_rng(1).standard_normal((2, 3, 7))
TARGETS = np.array([[0, 6, 2], [3, 3, 5]])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_against_numpy_and_in_float32_at_least(dtype):
    logits, other = jnp.asarray(LOGITS, dtype), jnp.asarray(OTHER, dtype)
    log_p, log_q = (log_softmax(np.asarray(x, np.float64)) for x in (logits, other))
    losses = -np.take_along_axis(log_p, TARGETS[..., None], -1)[..., 0]
    ours = objectives.log_probabilities(logits)
    for got, want in (
        (ours, log_p),
        (objectives.cross_entropy(logits, TARGETS), losses),
        (objectives.negative_log_likelihood(ours, TARGETS), losses),
        (
            objectives.kl_divergence(ours, objectives.log_probabilities(other)),
            (np.exp(log_p) * (log_p - log_q)).sum(-1),
        ),
        (
            objectives.mean_squared_error(logits, other),
            ((np.asarray(logits, np.float64) - np.asarray(other, np.float64)) ** 2).mean(-1),
        ),
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_the_axes_of_the_squared_error():
    difference = LOGITS - OTHER
    logits, other = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(OTHER, jnp.float32)
    for axis in (None, 1, (0, -1)):
        got = objectives.mean_squared_error(logits, other, axis)
        np.testing.assert_allclose(got, (difference**2).mean(axis), rtol=1e-5)


def test_the_gradient_of_the_cross_entropy_is_p_minus_one_hot():
    grad = jax.grad(lambda x: jnp.sum(objectives.cross_entropy(x, TARGETS)))(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_allclose(grad, np.exp(log_softmax(LOGITS)) - np.eye(7)[TARGETS], atol=1e-6)


def test_masked_mean():
    values = jnp.asarray([1.0, 2.0, np.nan, 6.0])
    assert objectives.masked_mean(values, jnp.asarray([True, False, False, True])) == 3.5
    nothing = jnp.zeros(4, bool)
    assert np.isnan(objectives.masked_mean(values, nothing))
    assert objectives.masked_mean(values, nothing, empty_is_zero=True) == 0


def test_classes_without_probability_add_nothing_to_a_divergence():
    """0 log 0 = 0: float64 over the classes that are left is the reference, for the value and for the gradient."""
    rng = np.random.default_rng(3)
    p, q = rng.normal(size=(2, 4, 6)).astype(np.float32)
    p[:, 2], q[:, 2] = -np.inf, -np.inf  # masked out in both
    p[:, 5] = -np.inf  # in the reference alone

    def divergence(p, q):
        return objectives.kl_divergence(objectives.log_probabilities(p), objectives.log_probabilities(q))

    left = np.array([0, 1, 3, 4, 5])
    log_p, log_q = (np.asarray(a[:, left], np.float64) for a in (p, q))
    log_p, log_q = (a - np.log(np.exp(a).sum(-1, keepdims=True)) for a in (log_p, log_q))
    on = np.isfinite(log_p)
    right = np.where(on, np.exp(log_p) * (np.where(on, log_p, 0) - log_q), 0).sum(-1)
    np.testing.assert_allclose(divergence(p, q), right, rtol=1e-5)

    gradient = jax.grad(lambda q: jnp.sum(divergence(p, q)))(jnp.asarray(q))  # q - p, by class
    np.testing.assert_allclose(gradient[:, left], np.exp(log_q) - np.exp(log_p), atol=1e-6)
    q[:, 0] = -np.inf
    assert np.isposinf(divergence(p, q)).all()
