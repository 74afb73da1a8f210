"""Dead latents begin anew where the loss is, and nothing else is touched."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import Jump, JumpReLU
from jax_interp.dictionaries.losses import Reconstruction
from jax_interp.dictionaries.training.config import Adam, Resampling
from jax_interp.dictionaries.training.resampling import Resampler, resampler
from jax_interp.dictionaries.training.train import init_learner, learn

FIELDS = {"n_features": 400, "steps": 100, "optimizer": Adam(warmup=1)}
CONFIG = variants.relu("x", resampling=Resampling(every=4, until=0.5), **FIELDS)


def moments(opt):
    return next(s for s in jax.tree.leaves(opt, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))


def learner_after_a_step():
    learner = init_learner(CONFIG, jax.random.key(0), (6,), jnp.full(6, 0.5))
    x = jax.random.normal(jax.random.key(1), (50, 6))
    return jax.jit(partial(learn, CONFIG))(learner, x, jnp.ones(1))[0]


def test_only_dead_latents_begin_anew_and_on_inputs_in_proportion_to_their_squared_loss():
    learner = learner_after_a_step()
    one, opt, dead = learner.dictionary, learner.opt, jnp.arange(400) >= 40
    x = jax.random.normal(jax.random.key(2), (3, 6))
    error = jnp.sqrt(jnp.asarray([1.0, 2.0, 3.0]))[:, None] * jnp.eye(6)[:3]  # losses 1, 2, 3: chances 1, 4, 9 of 14
    again = resampler(CONFIG, CONFIG.steps, jax.random.key(3))
    assert isinstance(again, Resampler)
    new, new_opt = jax.jit(again.resample)(one, opt, dead, x, error)
    for name, axis in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0)):
        alive = lambda a, axis=axis: np.take(np.asarray(a), np.arange(40), axis=axis)
        np.testing.assert_array_equal(alive(getattr(new, name)), alive(getattr(one, name)))
        for moment in ("mu", "nu"):
            before, after = (getattr(getattr(moments(o), moment), name) for o in (opt, new_opt))
            np.testing.assert_array_equal(alive(after), alive(before))
            assert np.asarray(before).any()
            assert not np.take(np.asarray(after), np.arange(40, 400), axis=axis).any()
    np.testing.assert_array_equal(new.b_enc[40:], np.zeros(360))
    np.testing.assert_array_equal(new.b_dec, one.b_dec)
    centred = np.asarray(x - one.b_dec[None])
    directions = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    which = (np.asarray(new.W_dec)[40:] @ directions.T).argmax(1)
    np.testing.assert_allclose(new.W_dec[40:], directions[which], atol=1e-6)
    counts, chances = np.bincount(which, minlength=3), 360 * np.array([1, 4, 9]) / 14
    assert (abs(counts - chances) < 5 * np.sqrt(chances)).all(), counts
    length = 0.2 * np.linalg.norm(np.asarray(one.W_enc)[:, :40], axis=0).mean()
    np.testing.assert_allclose(new.W_enc[:, 40:].T, length * directions[which], rtol=1e-5)


def test_a_free_crosscoder_gets_rows_as_long_as_the_living_and_thresholds_anew():
    """Two values of width 3, no pre-bias, JumpReLU: the mean of the inputs is taken off, θ is as at first."""
    config = variants.april(("a", "b"), **FIELDS)
    config = dataclasses.replace(config, activation=JumpReLU(0.5), loss=(Reconstruction(),))
    learner = init_learner(config, jax.random.key(0), (3, 3), jnp.zeros(6))
    one, dead = learner.dictionary, jnp.arange(400) >= 300
    lengths = jnp.asarray([0.3, 2.0])
    one = dataclasses.replace(
        one, W_dec=one.W_dec * 10 * jnp.repeat(lengths, 3)[None], activation=Jump(jnp.full(400, 4.0))
    )
    x = 5 + jax.random.normal(jax.random.key(2), (30, 6))
    again = Resampler(Resampling(), config.steps, config.activation, config.decoder, jax.random.key(3))
    new, _ = jax.jit(again.resample)(one, learner.opt, dead, x, x)
    norms = jnp.linalg.norm(new.W_dec.reshape(400, 2, 3), axis=2)
    np.testing.assert_allclose(norms, jnp.broadcast_to(lengths, (400, 2)), rtol=1e-4)
    np.testing.assert_allclose(new.activation.threshold[300:], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(new.activation.log_threshold[:300], np.full(300, 4.0))
    pre = x @ new.W_enc + new.b_enc[None]
    np.testing.assert_allclose(pre[:, 300:].mean(0), np.zeros(100), atol=1e-5)
    centred = np.asarray(x) - np.asarray(x).mean(0)
    cosine = (centred / np.linalg.norm(centred, axis=1, keepdims=True)) @ np.asarray(new.W_enc)[:, 300:]
    np.testing.assert_allclose(cosine.max(0), np.linalg.norm(np.asarray(new.W_enc)[:, 300:], axis=0), rtol=1e-5)
    every, _ = again.resample(one, learner.opt, jnp.ones(400, bool), x, x)
    np.testing.assert_allclose(  # none lives: all say how long
        np.linalg.norm(every.W_enc, axis=0), 0.2 * np.linalg.norm(one.W_enc, axis=0).mean(), rtol=1e-4
    )


@pytest.mark.parametrize(("steps", "every"), [(800, 120), (400, 60), (100, 50)])
def test_by_default_it_happens_four_times_and_in_a_short_run_less_often(steps, every):
    """A latent that never fires begins anew at the steps of the schedule, and at no other."""
    config = variants.relu("x", n_features=8, steps=steps)
    x, step = jax.random.normal(jax.random.key(1), (6, 4)), jax.jit(partial(learn, config))
    learner = init_learner(config, jax.random.key(0), (4,), jnp.zeros(4))
    silent = dataclasses.replace(learner.dictionary, b_enc=learner.dictionary.b_enc.at[0].set(-100.0))
    found = []
    for now in (every * i + by for i in range(1, 7) for by in (-1, 0, 1)):
        of_step = dataclasses.replace(
            learner, dictionary=silent, step=jnp.int32(now - 1), since_fired=jnp.full(8, every * 6)
        )
        if float(step(of_step, x, jnp.ones(1))[0].dictionary.b_enc[0]) > -50:
            found.append(now)
    assert found == [every * i for i in range(1, 5) if every * i <= 0.6 * steps]


def test_it_happens_when_it_is_due_and_not_after():
    x = jax.random.normal(jax.random.key(1), (50, 6))
    step = jax.jit(partial(learn, CONFIG))
    learner = learner_after_a_step()
    long_dead = jnp.where(jnp.arange(400) < 7, 10_000, 0)
    silent = jnp.where(jnp.arange(400) < 7, -100.0, learner.dictionary.b_enc)
    learner = dataclasses.replace(
        learner, since_fired=long_dead, dictionary=dataclasses.replace(learner.dictionary, b_enc=silent)
    )
    for now, happens in ((2, False), (3, True), (51, False)):  # steps 3, 4 and 52
        after, _ = step(dataclasses.replace(learner, step=jnp.int32(now)), x, jnp.ones(1))
        assert bool((after.dictionary.b_enc[:7] == 0).all()) is happens
        assert bool((after.since_fired[:7] == 0).all()) is happens
