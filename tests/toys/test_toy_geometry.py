"""Geometry of features against shapes that are known."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.toys.geometry import (
    dimensionality,
    dimensions_per_feature,
    feature_norm,
    gaps,
    is_pentagon,
    superposition,
)


def polygon(n, norm=1.0):
    angle = 2 * np.pi * np.arange(n) / n
    return jnp.asarray(norm * np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)


TETRAHEDRON = jnp.asarray([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], jnp.float32)


@pytest.mark.parametrize(
    ("W", "D"),
    [(jnp.eye(3), 1), (TETRAHEDRON, 3 / 4), (polygon(3), 2 / 3), (polygon(2), 1 / 2), (polygon(5, 1.3), 2 / 5)],
    ids=["alone", "tetrahedron", "triangle", "antipodal", "pentagon"],
)
def test_dimensionality_of_polytopes(W, D):
    np.testing.assert_allclose(dimensionality(W), D, rtol=1e-5)


def test_a_pentagon_by_its_numbers():
    W = polygon(5, 1.134)
    np.testing.assert_allclose(gaps(W), 72, atol=1e-3)
    np.testing.assert_allclose(feature_norm(W), 1.134, rtol=1e-5)
    np.testing.assert_allclose(superposition(W), 1.5 * 1.134**2, rtol=1e-4)  # Σ cos² over the other four is 3/2
    np.testing.assert_allclose(dimensions_per_feature(W), 2 / (5 * 1.134**2), rtol=1e-5)
    assert is_pentagon(W)
    assert not is_pentagon(W.at[0].multiply(0.1))
    assert not is_pentagon(jnp.concatenate([polygon(4), polygon(4)[:1]]))
    np.testing.assert_allclose(dimensionality(W.at[0].set(0.0))[0], 0)
