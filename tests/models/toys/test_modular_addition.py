"""Modular addition: the short way to the logits, the loss in float32, and measures on logits whose parts are known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.models.toys import progress_measures
from jax_interp.models.toys.modular_addition import (
    ModularConfig,
    answers,
    cross_entropy,
    init_modular,
    neurons,
    pairs,
    scores,
    tokens,
    train_modular,
    training_pairs,
)
from jax_interp.models.toys.progress_measures import (
    fourier_basis,
    frequency_norms,
    gini,
    key_frequencies,
    neuron_frequencies,
    progress,
)
from jax_interp.surgery import read

SMALL = ModularConfig(7, 0.5, d_model=16, n_heads=2, d_mlp=24)


def test_the_short_way_is_the_models_own():
    model = init_modular(jax.random.key(0), SMALL)
    a, b = pairs(7)
    logits, acts = jax.jit(read(model, "blocks.0.mlp.post"))(tokens(a, b, 7))
    np.testing.assert_allclose(answers(model, a, b), logits[:, -1, :7], atol=1e-5)
    np.testing.assert_allclose(neurons(model, a, b), acts["blocks.0.mlp.post"][:, -1], atol=1e-5)
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
    basis = fourier_basis(11)
    np.testing.assert_allclose(basis @ basis.T, np.eye(11), atol=1e-5)
    wave = jnp.cos(2 * jnp.pi * 3 / 11 * jnp.arange(11.0))[:, None] * jnp.asarray([[2.0, 0.0]])
    np.testing.assert_allclose(frequency_norms(wave), [0, 0, 2 * (11 / 2) ** 0.5, 0, 0], atol=1e-5)
    np.testing.assert_allclose([gini(jnp.ones(8)), gini(jnp.eye(8)[0])], [0, 7 / 8], atol=1e-6)
    a, b = pairs(11)
    phase = lambda k, x: 2 * jnp.pi * k / 11 * x.astype(jnp.float32)
    post = jnp.stack(
        [jnp.cos(phase(4, a)) * jnp.cos(phase(4, b)) + 2, jnp.sin(phase(2, a)) + jnp.cos(phase(5, b))], axis=1
    )
    best, shares = neuron_frequencies(post, 11)
    assert int(best[0]) == 4
    np.testing.assert_allclose(shares, [[0, 0, 0, 1, 0], [0, 0.5, 0, 0, 0.5]], atol=1e-4)


def test_measures_on_logits_that_are_cosines(monkeypatch):
    """Logits 9 cos w(a + b - c) and what was remembered: kept and left out are what they should be."""
    p, model = 7, init_modular(jax.random.key(0), SMALL)
    a, b = pairs(p)
    c, both = jnp.arange(p)[None], (a + b).astype(jnp.float32)
    rule = 9 * jnp.cos(2 * jnp.pi * 2 / p * (both[:, None] - c.astype(jnp.float32)))
    remembered = 3 * jax.nn.one_hot((a * b) % p, p) * (a != b)[:, None].astype(jnp.float32)
    remembered = remembered - remembered.mean(axis=0, keepdims=True)
    wave = jnp.stack([jnp.cos(2 * jnp.pi * 2 / p * both), jnp.sin(2 * jnp.pi * 2 / p * both)]) * 2**0.5 / p
    remembered = remembered - wave.T @ (wave @ remembered)
    monkeypatch.setattr(progress_measures, "answers", lambda *_: rule + remembered + jnp.arange(float(p))[None])
    mask, keys = jnp.arange(p * p) % 2 == 0, jnp.asarray([False, True, False])
    found = progress(model, mask, keys)
    answer, bias = (a + b) % p, jnp.arange(float(p))[None]
    np.testing.assert_allclose(found["restricted_loss"], cross_entropy(rule + bias, answer).mean(), rtol=1e-4)
    np.testing.assert_allclose(found["excluded_loss"], cross_entropy(remembered + bias, answer)[mask].mean(), rtol=1e-4)


@pytest.mark.slow
def test_it_groks():
    """p = 53: all of the training pairs are known from the first 500 steps on, the others only after 3000; meanwhile
    the restricted loss falls, before the test loss does, and the embedding's frequencies become few."""
    config = dataclasses.replace(ModularConfig(), recipe=dataclasses.replace(ModularConfig().recipe, steps=4500))
    models, mask, _ = train_modular(jax.random.key(0), config, every=500)
    found = jax.jit(lambda models: jax.lax.map(lambda model: scores(model, mask, 53), models))(models)
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
