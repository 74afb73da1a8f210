"""Universal AND: errors by the number of wrong features, against the sizes that the theory gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.toys.universal_and import (
    and_errors,
    in_superposition,
    read_and,
    read_xor,
    universal_and,
)


def test_errors_are_of_order_p_and_p_squared():
    """Both on: exact. One of the pair and another: about p. Two others: about p², and noise. RMS over 2000 draws."""
    model = universal_and(jax.random.key(0), 100, 4000, 0.1)
    found = jax.jit(and_errors)(jax.random.key(1), model)
    assert float(found["both"]) == 0
    assert float(found["smallest"]) >= 10
    np.testing.assert_allclose([found["one"], found["none"]], [0.1085, 0.0187], rtol=0.06)
    # RMS² = p² + p (1 - p) / |S ∩ S|, and the same of p²: what random triple and quadruple overlaps give
    for name, p in (("one", 0.1), ("none", 0.01)):
        want = np.sqrt(p**2 + p * (1 - p) / 40)
        np.testing.assert_allclose(found[name], want, rtol=0.1)


def test_and_and_xor_of_a_few_features():
    model = universal_and(jax.random.key(0), 12, 500, 0.3)
    i, j = (index.reshape(-1) for index in jnp.meshgrid(jnp.arange(12), jnp.arange(12), indexing="ij"))
    i, j = i[i < j], j[i < j]
    eye = jnp.eye(12)
    for f, conjunction, exclusive in (
        (eye[i] + eye[j], 1.0, 0.0),
        (eye[i], 0.0, 1.0),
        (jnp.zeros_like(eye[i]), 0.0, 0.0),
    ):
        post = model(f)
        np.testing.assert_allclose(read_and(model, post, i, j), conjunction)
        np.testing.assert_allclose(read_xor(model, post, f, i, j), exclusive)


def test_inputs_in_superposition_are_nearly_the_same():
    """Reading 40 features from 2000 dimensions adds a noise of √(p / 2000) or so for each that is on."""
    model = universal_and(jax.random.key(0), 40, 800, 0.2)
    inside, rows = in_superposition(jax.random.key(1), model, 2000)
    f = jnp.eye(40)[:30] + jnp.eye(40)[1:31]
    exact, seen = jax.jit(lambda: (model(f), inside(f @ rows)))()
    assert float(jnp.sqrt(jnp.mean((exact - seen) ** 2))) < 0.1
    i = jnp.arange(30)
    np.testing.assert_allclose(read_and(model, seen, i, i + 1), 1, atol=0.15)
