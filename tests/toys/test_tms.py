"""Toy models of superposition: the formula, one matrix used twice, instances, and the pentagon that training finds."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.decomposition import decompose
from jax_interp.toys.geometry import dimensionality, dimensions_per_feature, feature_norm, gaps, is_pentagon
from jax_interp.toys.tms import (
    PRESETS,
    TIED,
    TMSConfig,
    init_tms,
    insert_identity,
    preset,
    tms_loss,
    train_tms,
    untie,
)
from jax_interp.toys.toy_training import ToyTraining, one_active, sparse_features

CONFIG = TMSConfig(7, 3, weight_init="torch", random_bias=True)


def test_the_formula_and_its_variants():
    """y = relu(x W Wᵀ + b) by numpy; identity matrices and a matrix of its own change nothing; no relu, linear."""
    model, x = init_tms(jax.random.key(0), CONFIG), jax.random.normal(jax.random.key(1), (4, 7))
    W, b = np.asarray(model.linear1.weight, float), np.asarray(model.linear2.bias, float)
    pre = np.asarray(x, float) @ W @ W.T + b
    np.testing.assert_allclose(model(x), np.maximum(pre, 0), atol=1e-5)
    np.testing.assert_allclose(dataclasses.replace(model, relu=False)(x), pre, atol=1e-5)
    for other in (insert_identity(model, 2), untie(model)):
        np.testing.assert_allclose(other(x), model(x), atol=1e-6)
    importance = jnp.arange(7.0)
    want = np.mean(np.arange(7) * (np.asarray(x) - np.asarray(model(x))) ** 2)
    np.testing.assert_allclose(tms_loss(model, x, importance), want, rtol=1e-5)


def test_one_matrix_and_one_gradient():
    model, x = init_tms(jax.random.key(0), CONFIG), jax.random.normal(jax.random.key(1), (4, 7))
    assert [leaf.shape for leaf in jax.tree.leaves(model)] == [(7, 3), (7,)]
    tied, apart = jax.grad(tms_loss)(model, x), jax.grad(tms_loss)(untie(model), x)
    both = apart.linear1.weight + apart.linear2.weight.T
    np.testing.assert_allclose(tied.linear1.weight, both, rtol=1e-4, atol=1e-5)


def test_decomposition_reaches_every_matrix():
    model, x = insert_identity(init_tms(jax.random.key(0), CONFIG)), jnp.eye(7)
    parts = decompose(model, ["linear1", "hidden_layers.0"], C=4, key=jax.random.key(0), tied=TIED)
    assert set(parts.names) == {"linear1", "hidden_layers.0", "linear2"}
    np.testing.assert_array_equal(parts(x), model(x))


def test_what_data_looks_like():
    x = sparse_features(jax.random.key(0), 50_000, 8, 0.1, -1.0, 1.0)
    on = x != 0
    assert abs(float(on.mean()) - 0.1) < 0.003
    assert abs(float(jnp.mean(x, where=on))) < 0.01
    assert abs(float(jnp.mean(x**2, where=on)) - 1 / 3) < 0.01
    assert float(x.min()) >= -1
    assert float(x.max()) < 1
    assert float(jnp.mean(sparse_features(jax.random.key(0), 50_000, 8, 1.0) != 0)) > 0.999
    one = one_active(jax.random.key(0), 100, 8)
    assert (jnp.sum(one != 0, axis=1) == 1).all()


def test_presets_and_mistakes():
    assert all(config.source for config in PRESETS.values())
    assert preset("intro").importance()[3] == pytest.approx(0.9**3)
    assert preset("phase-3-2").importance().shape == (100, 3)
    with pytest.raises(UserError, match=r"there is no TMS preset '5-3'.*40-10"):
        preset("5-3")
    with pytest.raises(UserError, match="probability has 2 entries for instances=3"):
        TMSConfig(instances=3, probability=(0.1, 0.2))
    rate = ToyTraining(101, 1, 1.0, "cosine", warm_up=10).rate
    np.testing.assert_allclose([rate(0), rate(9), rate(50), rate(100)], [0.1, 0.98, 0.5, 0.0], atol=2e-3)


def test_five_features_in_the_plane_make_a_pentagon():
    """Ten seeds at once: at least nine pentagons with the measured norm and bias, dimensions that sum to 2."""
    config = TMSConfig(instances=10, training=ToyTraining(2000, 512))
    models = train_tms(jax.random.key(0), config)
    W = models.linear1.weight
    good = np.asarray(jax.vmap(is_pentagon)(W))
    assert good.sum() >= 9
    np.testing.assert_allclose(jax.vmap(gaps)(W)[good], 72, atol=1)
    np.testing.assert_allclose(jax.vmap(feature_norm)(W)[good], 1.134, atol=0.02)
    np.testing.assert_allclose(models.linear2.bias[good], -0.246, atol=0.02)
    np.testing.assert_allclose(jax.vmap(dimensionality)(W)[good].sum(axis=1), 2, atol=0.2)


@pytest.mark.slow
def test_forty_features_in_ten_dimensions_are_all_kept():
    models = train_tms(jax.random.key(0), dataclasses.replace(preset("40-10"), instances=3))
    norms = jax.vmap(feature_norm)(models.linear1.weight)
    assert norms.shape == (3, 40)
    np.testing.assert_allclose(norms, 1.122, atol=0.05)
    np.testing.assert_allclose(models.linear2.bias, -0.333, atol=0.06)


@pytest.mark.slow
def test_sparser_features_share_dimensions():
    """100 features, 20 dimensions: as many directions as dimensions at p = 1; antipodal pairs at p = .3 (D* = 1, 1/2).
    Some runs have a few features more in p = .3's pairs, 16 in 7 dimensions, say."""
    config = TMSConfig(100, 20, instances=2, probability=(1.0, 0.3), training=ToyTraining(5000, 512))
    W = train_tms(jax.random.key(0), config).linear1.weight
    np.testing.assert_allclose(jax.vmap(dimensions_per_feature)(W), [1.0, 0.48], atol=0.03)
    D = np.asarray(jax.vmap(dimensionality)(W))
    np.testing.assert_allclose(D.sum(axis=1), 20, atol=0.3)
    paired = np.asarray(feature_norm(W[1])) > 0.5
    assert 38 <= paired.sum() <= 43
    assert np.median(D[1][paired]) == pytest.approx(0.5, abs=0.01)
