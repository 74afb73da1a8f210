"""Residual MLPs: the formula, the two exact ways round the wide embedding, and the gated functions made by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.surgery import Zero, at, edit, read
from jax_interp.toys.gated_pwl import GatedPWLConfig, gated_inputs, gated_pwl
from jax_interp.toys.resid_mlp import (
    ResidMLPConfig,
    collapse,
    in_features,
    init_resid_mlp,
    label,
    naive_loss,
    resid_mlp_target,
)
from jax_interp.toys.toy_training import sparse_features


@pytest.mark.parametrize(("layers", "d_mlp"), [(1, 6), (3, 5)])
def test_a_narrow_stream_carries_the_same(layers, d_mlp):
    """r W_Eᵀ after every r += relu(r W_in) W_out, by numpy; `in_features` and `collapse` give it, and gradients too."""
    model = jax.jit(init_resid_mlp, static_argnums=1)(jax.random.key(0), ResidMLPConfig(12, 90, layers, d_mlp))
    x = jax.random.normal(jax.random.key(1), (5, 12))
    W_E = np.asarray(model.embed.weight, float)
    np.testing.assert_allclose(np.linalg.norm(W_E, axis=1), 1, rtol=1e-5)
    r = np.asarray(x, float) @ W_E
    for block in model.blocks:
        up, down = np.asarray(block.mlp.up.weight, float), np.asarray(block.mlp.down.weight, float)
        r = r + np.maximum(r @ up, 0) @ down
    y = r @ W_E.T
    small = collapse(model)
    assert small.embed.weight.shape == (12, 12 + (layers - 1) * d_mlp)
    for got in (model(x), in_features(model, x), small(x)):
        np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-5)

    def loss(blocks, forward):
        return jnp.mean((forward(dataclasses.replace(model, blocks=blocks), x) - label(x)) ** 2)

    one = jax.jit(jax.grad(lambda blocks: loss(blocks, lambda model, x: model(x))))(model.blocks)
    other = jax.jit(jax.grad(lambda blocks: loss(blocks, in_features)))(model.blocks)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    pre = read(model, "blocks.*.mlp.pre", output=False)(x)["blocks.*.mlp.pre"]
    np.testing.assert_allclose(read(small, "blocks.*.mlp.pre", output=False)(x)["blocks.*.mlp.pre"], pre, atol=1e-5)


def test_half_of_the_features_by_hand():
    """A neuron each for 6 of 12 features and none for the others has the naive loss, (n - d) / n · p / 6."""
    model = init_resid_mlp(jax.random.key(0), ResidMLPConfig(12, 12, 1, 6, identity=True))
    eye = jnp.eye(12)[:, :6]
    mlp = dataclasses.replace(model.blocks[0].mlp, up=dataclasses.replace(model.blocks[0].mlp.up, weight=eye),
                              down=dataclasses.replace(model.blocks[0].mlp.down, weight=eye.T))  # fmt: skip
    model = dataclasses.replace(model, blocks=[dataclasses.replace(model.blocks[0], mlp=mlp)])
    x = sparse_features(jax.random.key(1), 400_000, 12, 0.1, -1.0, 1.0)
    loss = float(jnp.mean((in_features(model, x) - label(x)) ** 2))
    assert loss == pytest.approx(naive_loss(12, 6, 0.1), rel=0.02)
    np.testing.assert_allclose(naive_loss(100, 50, 0.01), 8.33e-4, rtol=1e-3)


@pytest.mark.parametrize("simple_bias", [False, True])
def test_gated_functions_are_what_they_should_be(simple_bias):
    """The network meets each function at its knots, adds those whose bit is on, and nothing else."""
    config = GatedPWLConfig(simple_bias=simple_bias, probability=0.4)
    model, truth = jax.jit(gated_pwl, static_argnums=1)(jax.random.key(0), config)
    inputs = jax.jit(gated_inputs, static_argnums=(1, 2))(jax.random.key(1), 300, config)
    np.testing.assert_allclose(model(inputs), truth.target(inputs), atol=1e-4)
    at_knots = jnp.concatenate([jnp.tile(truth.knots[:, None], (4, 1)), jnp.repeat(jnp.eye(4), 10, axis=0)], axis=1)
    np.testing.assert_allclose(model(at_knots)[:, 0], truth.functions(truth.knots).T.reshape(-1), atol=1e-4)
    np.testing.assert_array_equal(model(inputs.at[:, 1:].set(0.0)), 0)
    assert (jnp.bincount(truth.owner.reshape(-1), length=4) == 10).all()


def test_a_gated_mechanism_is_its_neurons():
    """Mechanisms sum to the matrices; without a function's neurons the network computes the others alone."""
    model, truth = jax.jit(gated_pwl, static_argnums=1)(jax.random.key(2), GatedPWLConfig())
    parts = truth.mechanisms(model)
    for layer, block in enumerate(model.blocks):
        np.testing.assert_allclose(parts[f"blocks.{layer}.mlp.up"].sum(0), block.mlp.up.weight)
        np.testing.assert_allclose(parts[f"blocks.{layer}.mlp.down"].sum(0), block.mlp.down.weight)
    inputs = gated_inputs(jax.random.key(1), 50, GatedPWLConfig(probability=1.0))
    mine = [np.flatnonzero(np.asarray(owner) == 0) for owner in truth.owner]
    off = edit(model, *(at(f"blocks.{i}.mlp.post", Zero(), feature=rows) for i, rows in enumerate(mine) if len(rows)))
    np.testing.assert_allclose(off(inputs), truth.target(inputs.at[:, 1].set(0.0)), atol=1e-4)


@pytest.mark.slow
def test_the_trained_target_beats_the_naive_one(tmp_path, monkeypatch):
    """Loss / p .067 where a neuron for every other feature has .083: the embedding's overlaps are noise."""
    monkeypatch.setenv("JAX_INTERP_CACHE", str(tmp_path))
    model = resid_mlp_target("1-layer")
    x = sparse_features(jax.random.key(5), 100_000, 100, 0.01, -1.0, 1.0)
    assert float(jnp.mean((in_features(model, x) - label(x)) ** 2)) / 0.01 == pytest.approx(0.0672, abs=0.002)
