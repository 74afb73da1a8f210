"""Gradient pursuit: a float64 reference written from the steps of the paper, and the optimum by brute force."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
from scipy.optimize import nnls

from jax_interp.dictionaries.inference_time import Pursuit, gradient_pursuit

RNG = np.random.default_rng(0)


def pursuit(x, D, k, extra=0):
    """One row in float64, dense."""
    a, chosen, residual, errors = np.zeros(len(D)), np.zeros(len(D), bool), x.copy(), []
    for i in range(k + extra):
        product = D @ residual
        if i < k:
            chosen[product.argmax()] = True
        g = np.where(chosen, product, 0)
        c = g @ D
        a = np.maximum(a + (c @ residual) / (c @ c) * g if c @ c else a, 0)
        residual = x - a @ D
        errors.append(residual @ residual)
    return a, np.array(errors)


def test_codes_equal_the_reference():
    D, x = RNG.standard_normal((40, 8)), RNG.standard_normal((30, 8)) * 3  # atoms of any norm
    dictionary = Pursuit(jnp.asarray(D, jnp.float32), jnp.full(8, 0.5), k=5, extra_steps=3)
    z = np.asarray(dictionary.encode(jnp.asarray(x + 0.5, jnp.float32).reshape(5, 6, 8))).reshape(30, 40)
    want = np.stack([pursuit(row, D, 5, 3)[0] for row in x])
    np.testing.assert_allclose(z, want, atol=1e-4)
    assert ((z > 0).sum(1) <= 5).all()
    assert (z >= 0).all()
    code = gradient_pursuit(jnp.asarray(x, jnp.float32), jnp.asarray(D, jnp.float32), 5, 3)
    np.testing.assert_allclose(code.error.T, [pursuit(row, D, 5, 3)[1] for row in x], rtol=1e-3, atol=1e-4)
    x_hat = np.asarray(dictionary.decode(jnp.asarray(z)))
    np.testing.assert_allclose(((x + 0.5 - x_hat) ** 2).sum(1), code.error[-1], rtol=1e-3, atol=1e-4)


def test_an_orthonormal_decoder_gets_the_optimum():
    D = np.linalg.qr(RNG.standard_normal((8, 8)))[0]
    x = RNG.standard_normal((20, 8))
    z = Pursuit(jnp.asarray(D, jnp.float32), jnp.zeros(8), k=3).encode(jnp.asarray(x, jnp.float32))
    products = x @ D.T
    want = np.where(np.argsort(np.argsort(-products, axis=1), axis=1) < 3, np.maximum(products, 0), 0)
    np.testing.assert_allclose(z, want, atol=1e-5)


def test_near_the_best_of_all_supports():
    """No code beats the optimum; on the atoms it chose, more steps reach it; its mean loss is close to the best."""
    D = RNG.standard_normal((10, 6))
    D /= np.linalg.norm(D, axis=1, keepdims=True)
    x = np.stack([RNG.uniform(1, 2, 2) @ D[RNG.choice(10, 2, replace=False)] for _ in range(25)])
    x += 0.05 * RNG.standard_normal(x.shape)
    code = gradient_pursuit(jnp.asarray(x, jnp.float32), jnp.asarray(D, jnp.float32), 2, extra_steps=200)
    error = np.asarray(code.error[-1], np.float64)
    supports = list(itertools.combinations(range(10), 2))
    best = np.array([min(nnls(D[list(s)].T, row)[1] ** 2 for s in supports) for row in x])
    on_chosen = np.array([nnls(D[i].T, row)[1] ** 2 for i, row in zip(np.asarray(code.indices), x)])
    assert (error >= best - 1e-5).all()
    np.testing.assert_allclose(error, on_chosen, atol=1e-4)
    variance = (x**2).sum(1).mean()
    assert error.mean() - best.mean() < 0.1 * variance
    assert np.median(error - best) < 1e-4  # most rows get the optimum itself
