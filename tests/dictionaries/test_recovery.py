"""Scores against the truth: the oracle has all marks, a random dictionary those of chance, and EV is the right one."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations import ReLU
from jax_interp.dictionaries.evaluation.controls import oracle, random_dictionary
from jax_interp.dictionaries.evaluation.recovery import score
from jax_interp.dictionaries.evaluation.similarity import mcc
from jax_interp.dictionaries.forms import Dictionary
from jax_interp.toys.synthetic import sharkey, tree, two_models

KEY = jax.random.key(0)


def test_the_oracle_of_an_independent_dictionary_has_every_mark():
    world = jax.jit(tree)(KEY)
    got = score(oracle(world.directions, world.bias, 0.5), world, jax.random.key(1), n=8192)
    for name in ("mcc", "uniqueness", "ground_truth_recall", "found", "explained_variance", "shrinkage"):
        assert getattr(got, name) == pytest.approx(1, abs=1e-5), name
    assert (got.precision, got.recall, got.f1, got.dead) == (1, 1, 1, 0)
    assert got.l0 == got.true_l0 == pytest.approx(1.12, abs=0.08)
    assert got.samples == 8192


def test_absorption_shows_in_the_recall_of_the_parents():
    """Parent latents silenced wherever a child fires, the children writing both: the reconstruction hardly shows it,
    the parents' recall falls to .4."""
    world = jax.jit(tree)(KEY, 0.0)
    D = np.asarray(world.directions).copy()
    W_enc, b_enc = D.T.copy(), np.full(20, -0.5)
    for parent in (0, 4, 8):
        D[parent + 1 : parent + 4] += 0.9 * D[parent]  # no tie for the nearest feature
        W_enc[:, parent] -= np.asarray(world.directions)[parent + 1 : parent + 4].sum(0)
    arrays = (jnp.asarray(a, jnp.float32) for a in (2 * W_enc, 2 * b_enc, D, np.zeros(20)))
    absorbed = Dictionary(*arrays, activation=ReLU(), centred=False)
    got = score(absorbed, world, jax.random.key(1), n=16_384)
    assert got.explained_variance > 0.99
    assert got.precision == 1
    assert got.recall == pytest.approx((3 * 0.4 + 17) / 20, abs=0.01)
    assert got.l0 == pytest.approx(1.12 - 3 * 0.15 * 0.6, abs=0.05)
    assert got.l0 < got.true_l0 - 0.2
    assert got.mcc < 0.9


def test_random_is_at_chance_and_explained_variance_is_the_right_one():
    make = partial(sharkey, d=64, n_features=512, active=6.0)
    world = dataclasses.replace(jax.jit(make)(KEY), bias=jnp.linspace(-1, 1, 64))
    random = random_dictionary(jax.random.key(2), 64, 128, 6, world.bias)
    got = score(random, world, jax.random.key(1), n=4096)
    # √(2 ln 512 / 64) = .44 is the leading term of the largest of 512 cosines, from above
    chance = np.sqrt(2 * np.log(512) / 64)
    assert 0.7 * chance < got.mcc < chance
    assert mcc(world.directions[:128], world.directions) == pytest.approx(1, abs=1e-5)
    assert got.f1 < 0.3
    draw = jax.jit(lambda key: world.sample(key, 4096)[0])
    x = np.asarray(draw(jax.random.fold_in(jax.random.key(1), 0)), np.float64)  # the first batch of `score`
    x_hat = np.asarray(jax.jit(lambda d, x: d.decode(d.encode(x)))(random, jnp.asarray(x, jnp.float32)), np.float64)
    sse, square = ((x - x_hat) ** 2).sum(1).mean(), (x**2).sum(1).mean()
    right = 1 - sse / ((x - x.mean(0)) ** 2).sum(1).mean()
    wrong = 1 - sse / (square - (x**2).mean(0).mean() ** 2)
    assert got.explained_variance == pytest.approx(right, rel=1e-3)
    assert abs(got.explained_variance - wrong) > 0.01
    assert got.shrinkage == pytest.approx((np.linalg.norm(x_hat, axis=1) / np.linalg.norm(x, axis=1)).mean(), rel=1e-3)


def test_a_crosscoder_of_two_models_is_scored_too():
    world = jax.jit(two_models)(KEY)

    @register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Crosscoder:
        W_dec: jax.Array

        def encode(self, x):
            return 2 * jax.nn.relu(x @ self.W_dec.T - 0.5)

        def decode(self, z):
            return z @ self.W_dec

    got = score(Crosscoder(world.directions), world, jax.random.key(1), n=4096)
    assert got.mcc == pytest.approx(1, abs=1e-5)
    assert got.recall == 1
    assert got.l0 == got.true_l0 == 1
