"""Superposition under the loss at the target alone: by hand on a circle, and what training finds."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jax_interp.toys.alternative_superposition import (
    AlternativeConfig,
    evaluate,
    target_data,
    target_loss,
    train_alternative,
)
from jax_interp.toys.layers import Linear, Transposed
from jax_interp.toys.tms import TMS


def test_any_circle_solves_it_and_reconstructs_nothing():
    """100 unit vectors in the plane: every feature the largest of its own response, target error 0, and all outputs
    fifty times worse than zero: the mean of cos² is 1/2."""
    angle = 2 * np.pi * np.arange(100) / 100
    W = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=1), jnp.float32)
    model = TMS(Linear(W), nnx.List([]), Transposed(None), relu=False)
    found = jax.jit(evaluate)(model)
    assert float(found["accuracy"]) == 1
    np.testing.assert_allclose(found["target_error"], 0, atol=1e-5)
    np.testing.assert_allclose(found["mse"], 0.5 - 0.01, atol=1e-4)
    config = AlternativeConfig(others=0.2, amplitude=0.1)
    x, t = jax.jit(target_data, static_argnums=(1, 2))(jax.random.key(0), 500, config)
    own = jax.nn.one_hot(t, 100, dtype=bool)
    assert float(jnp.max(jnp.where(own, 0, x))) <= 0.1
    assert float(jnp.mean(jnp.where(own, 0, x) > 0)) == pytest.approx(0.2, abs=0.01)
    alone = jnp.where(own, x, 0)
    np.testing.assert_allclose(target_loss(model, alone, t, 0.0), 0, atol=1e-6)
    # the largest other output of a circle is cos 3.6° of the input
    want = 0.5 * jnp.mean(jnp.sum(alone, axis=1)) * np.cos(2 * np.pi / 100)
    np.testing.assert_allclose(target_loss(model, alone, t, 0.5), want, rtol=1e-4)


@pytest.mark.slow
def test_trained_with_and_without_others():
    """More than half of the features at c = 1e-4, target error under .02, and still over 20 times the error of zero;
    with others on at full size it collapses."""
    config = AlternativeConfig()
    keys = jax.random.split(jax.random.key(0), 2)
    alone, among = (
        jax.vmap(evaluate)(jax.jit(jax.vmap(partial(train_alternative, config=config)))(keys))
        for config in (config, dataclasses.replace(config, others=0.05, amplitude=1.0))
    )
    assert (alone["accuracy"] > 0.6).all()
    assert (alone["target_error"] < 0.02).all()
    assert (alone["mse"] > 20 * alone["mse_of_zero"]).all()
    assert (among["accuracy"] < 0.5).all()
