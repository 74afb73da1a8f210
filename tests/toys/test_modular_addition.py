"""Modular addition: the short way to the logits, the loss in float32, and measures on logits whose parts are known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.surgery import read
from jax_interp.toys import progress_measures
from jax_interp.toys.modular_addition import (
    ModularConfig,
    all_pairs,
    answer_logits,
    cross_entropy,
    evaluate_modular,
    init_modular,
    mlp_activations,
    pair_tokens,
    train_modular,
    training_pairs,
)
from jax_interp.toys.progress_measures import (
    fourier_basis,
    frequency_norms,
    gini,
    key_frequencies,
    neuron_frequencies,
    progress,
)

SMALL = ModularConfig(7, 0.5, d_model=16, n_heads=2, d_mlp=24)


def test_the_short_way_is_the_models_own():
    @jax.jit
    def both_ways(key):
        model = init_modular(key, SMALL)
        a, b = all_pairs(7)
        logits, acts = read(model, "blocks.0.mlp.post")(pair_tokens(a, b, 7))
        return (answer_logits(model, a, b), mlp_activations(model, a, b)), (
            logits[:, -1, :7],
            acts["blocks.0.mlp.post"][:, -1],
        )

    for short, whole in zip(*both_ways(jax.random.key(0))):
        np.testing.assert_allclose(short, whole, atol=1e-5)
    assert int(training_pairs(jax.random.key(0), SMALL).sum()) == 24


def test_cross_entropy_is_exact_where_float32_rounds_to_zero():
    gap = np.array([0.0, 5.0, 30.0, 60.0])
    logits = np.zeros((4, 3))
    logits[:, 1] = gap
    want = np.log1p(2 * np.exp(-gap))
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.full(4, 1))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    usual = -jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))[:, 1]
    assert float(usual[3]) == 0 < want[3]


def test_fourier_and_gini():
    wave = np.cos(2 * np.pi * 3 / 11 * np.arange(11))[:, None] * np.array([[2.0, 0.0]])
    basis, norms, even, one = jax.jit(
        lambda x: (fourier_basis(11), frequency_norms(x), gini(jnp.ones(8)), gini(jnp.eye(8)[0]))
    )(jnp.asarray(wave, jnp.float32))
    np.testing.assert_allclose(basis @ basis.T, np.eye(11), atol=1e-5)
    np.testing.assert_allclose(norms, [0, 0, 2 * (11 / 2) ** 0.5, 0, 0], atol=1e-5)
    np.testing.assert_allclose([even, one], [0, 7 / 8], atol=1e-6)
    a, b = np.divmod(np.arange(121), 11)
    phase = lambda k, x: 2 * np.pi * k / 11 * x
    post = np.stack([np.cos(phase(4, a)) * np.cos(phase(4, b)) + 2, np.sin(phase(2, a)) + np.cos(phase(5, b))], axis=1)
    best, shares = jax.jit(neuron_frequencies, static_argnums=1)(jnp.asarray(post, jnp.float32), 11)
    assert int(best[0]) == 4
    np.testing.assert_allclose(shares, [[0, 0, 0, 1, 0], [0, 0.5, 0, 0, 0.5]], atol=1e-4)


def test_measures_on_logits_that_are_cosines(monkeypatch):
    """Logits 9 cos w(a + b - c) and what was remembered: kept and left out are what they should be."""
    p = 7
    a, b = np.divmod(np.arange(p * p), p)
    c, bias, mask = np.arange(p)[None], np.arange(float(p))[None], np.arange(p * p) % 2 == 0
    rule = 9 * np.cos(2 * np.pi * 2 / p * ((a + b)[:, None] - c))
    remembered = 3.0 * np.eye(p)[(a * b) % p] * (a != b)[:, None]
    remembered = remembered - remembered.mean(axis=0, keepdims=True)
    wave = np.stack([np.cos(2 * np.pi * 2 / p * (a + b)), np.sin(2 * np.pi * 2 / p * (a + b))]) * 2**0.5 / p
    remembered = remembered - wave.T @ (wave @ remembered)
    logits = jnp.asarray(rule + remembered + bias, jnp.float32)
    monkeypatch.setattr(progress_measures, "answer_logits", lambda *_: logits)
    keys = jnp.asarray([False, True, False])
    found = jax.jit(lambda key, mask: progress(init_modular(key, SMALL), mask, keys))(jax.random.key(0), mask)

    def loss(logits):
        return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(p * p), (a + b) % p]

    np.testing.assert_allclose(found["restricted_loss"], loss(rule + bias).mean(), rtol=1e-4)
    np.testing.assert_allclose(found["excluded_loss"], loss(remembered + bias)[mask].mean(), rtol=1e-4)


@pytest.mark.slow
def test_it_groks():
    """p = 53: all of the training pairs are known from the first 500 steps on, the others only after 3000; meanwhile
    the restricted loss falls, before the test loss does, and the embedding's frequencies become few."""
    config = dataclasses.replace(ModularConfig(), training=dataclasses.replace(ModularConfig().training, steps=4500))
    models, mask, _ = train_modular(jax.random.key(0), config, every=500)
    found = jax.jit(lambda models: jax.lax.map(lambda model: evaluate_modular(model, mask, 53), models))(models)
    assert float(found["train_accuracy"][1]) == 1
    assert float(found["test_accuracy"][2]) < 0.5
    assert float(found["test_accuracy"][-1]) > 0.99
    used = key_frequencies(jax.tree.map(lambda leaf: leaf[-1], models))
    assert 2 <= len(used) <= 7
    keys = jnp.zeros(26, bool).at[jnp.asarray(used) - 1].set(True)
    measures = jax.jit(lambda models: jax.lax.map(lambda model: progress(model, mask, keys), models))(models)
    assert float(measures["restricted_loss"][3]) < 0.5 < float(found["test_loss"][3])
    assert float(measures["excluded_loss"][-1]) > 5 > float(measures["excluded_loss"][2])
    assert (jnp.diff(measures["embed_gini"]) > 0).all()
