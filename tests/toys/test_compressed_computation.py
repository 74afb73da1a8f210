"""Compressed computation: the naive loss, the noise, the factorisation without training, and the gain that is M's."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.toys.compressed_computation import (
    CompressedConfig,
    CompressedMLP,
    evaluate_compressed,
    factored_mlp,
    naive_per_probability,
    noise_matrix,
    semi_nmf,
    train_compressed,
)
from jax_interp.toys.layers import Linear, ReluMLP

CONFIG = CompressedConfig()


@pytest.mark.parametrize("exactly_one", [False, True])
def test_half_of_the_features_is_the_naive_loss(exactly_one):
    """Loss / p = 1/12 for a neuron each of half of the features, so no gain; 50 responses of 1 and 50 of 0."""
    config = dataclasses.replace(CONFIG, exactly_one=exactly_one)
    half = jnp.eye(100)[:, :50]
    model, M = CompressedMLP(ReluMLP(Linear(half), Linear(half.T))), jnp.zeros((100, 100))
    found = jax.jit(lambda model, M: evaluate_compressed(model, M, jax.random.key(0), config))(model, M)
    assert naive_per_probability(config) == pytest.approx(1 / 12)
    assert float(found["loss_per_p"]) == pytest.approx(1 / 12, rel=0.02)
    assert abs(float(found["gain"])) < 0.02
    assert (int(found["diagonal_above_0.9"]), int(found["diagonal_below_0.1"])) == (50, 50)


def test_noise_matrices():
    symmetric, plain, overlap = (noise_matrix(jax.random.key(0), 100, 0.03, kind)
                                 for kind in ("symmetric", "asymmetric", "embedding"))  # fmt: skip
    np.testing.assert_allclose(symmetric, symmetric.T)
    np.testing.assert_allclose([symmetric.std(), plain.std(), overlap.std()], 0.03, rtol=0.05)
    np.testing.assert_allclose(jnp.diag(overlap), 0, atol=1e-5)
    assert not np.allclose(plain, plain.T)


def test_semi_nmf_recovers_what_has_such_factors():
    G, F = jnp.abs(jax.random.normal(jax.random.key(0), (30, 3))), jax.random.normal(jax.random.key(1), (3, 20))
    left, right = semi_nmf(G @ F, 3, jax.random.key(2))
    assert float(left.min()) >= 0
    assert float(jnp.linalg.norm(left @ right - G @ F) / jnp.linalg.norm(G @ F)) < 0.02


def test_a_network_without_training_fits_what_its_rank_allows():
    """One feature on: half of the rows are positive and miss what rank 50 leaves of I + M, half negative and miss M:
    `(Σ_{k>50} s_k² + |M|²) / 6 n`, .063 for σ = .025."""
    M, config = noise_matrix(jax.random.key(3), 100, 0.025), dataclasses.replace(CONFIG, exactly_one=True)
    evaluate = jax.jit(
        lambda M: evaluate_compressed(factored_mlp(M, 50, jax.random.key(0)), M, jax.random.key(9), config)
    )
    left = np.linalg.svd(np.eye(100) + np.asarray(M, float))[1][50:]
    want = (np.sum(left**2) + np.sum(np.asarray(M, float) ** 2)) / 600
    np.testing.assert_allclose(evaluate(M)["loss_per_p"], want, rtol=0.03)


@pytest.mark.slow
def test_the_gain_is_the_noises():
    """Nothing is gained without M, about .20 at σ = .025, and the same with what an embedding of 1000 overlaps."""
    noise = noise_matrix(jax.random.key(3), 100, 0.025)
    overlap = noise_matrix(jax.random.key(3), 100, 1000**-0.5, "embedding")
    gains = []
    for M in (jnp.zeros((100, 100)), noise, overlap):
        model = jax.jit(train_compressed)(jax.random.key(0), M)
        gains.append(float(jax.jit(evaluate_compressed)(model, M, jax.random.key(9))["gain"]))
    assert gains[0] < 0.01
    np.testing.assert_allclose(gains[1:], [0.20, 0.19], atol=0.03)
