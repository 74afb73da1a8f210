"""A step with `rate_scale` is the step of a config whose learning rate is that many times as large."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from same_bits import assert_same_bits, bits
from small_models import LLAMA_LIKE
from tiny_tms import TIED, sparse, tiny
from toy import batch_at, toy

from jax_interp.core.errors import UserError
from jax_interp.decomposition.apd import APDConfig
from jax_interp.decomposition.apd.train import APD
from jax_interp.decomposition.config import DecompositionConfig, Schedule
from jax_interp.decomposition.train import SPD
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import TopK
from jax_interp.dictionaries.training.config import Adam, CrossLayerConfig, EndToEndSAEConfig, SAEConfig
from jax_interp.dictionaries.training.cross_layer import cross_layer_step, init_cross_layer_state
from jax_interp.dictionaries.training.end_to_end import EndToEndConfig, end_to_end_step, init_end_to_end_state
from jax_interp.dictionaries.training.joint import JointConfig, train_joint
from jax_interp.dictionaries.training.sweep import Sweep, train_sweep
from jax_interp.dictionaries.training.train import init_train_state, train_dictionary, train_step
from jax_interp.models.decoder import init
from jax_interp.models.language_modelling import Optimization, init_state
from jax_interp.models.language_modelling import train_step as language_step
from jax_interp.training import Log, OnNan

SITES, SCALE, STEPS = ("blocks.0.resid_post", "blocks.1.resid_post"), 0.25, 10
FIELDS = {"n_features": 8, "steps": STEPS, "buffer": 256}


def optimizer(scale):
    return Adam(learning_rate=1e-2 * scale, warmup=0)


def dictionary(scale):
    config = variants.topk(SITES[1], k=2, **FIELDS, optimizer=optimizer(scale))
    state = init_train_state(config, toy(), batch_at)
    return partial(train_step, config, state, batch_at(9), toy())


def cross_layer(scale):
    config = CrossLayerConfig(SITES, activation=TopK(2), optimizer=optimizer(scale), **FIELDS)
    state = init_cross_layer_state(config, toy(), batch_at)
    return partial(cross_layer_step, config, state, batch_at(9), toy())


def end_to_end(scale):
    sae = EndToEndSAEConfig(SITES[0], n_features=8, activation=TopK(2), optimizer=optimizer(scale))
    config = EndToEndConfig((sae,), downstream=SITES[1:], steps=STEPS, buffer=256)
    state = init_end_to_end_state(config, toy(), batch_at)
    return partial(end_to_end_step, config, state, batch_at(9), toy())


def language_model(scale):
    optimize = Optimization(learning_rate=1e-2 * scale, warmup=0).build(STEPS)
    state = init_state(init(LLAMA_LIKE, jax.random.key(0)), optimize)
    tokens = np.random.default_rng(0).integers(0, LLAMA_LIKE.vocab_size, (4, 9), np.int32)
    return partial(language_step(optimize), state, tokens)


def decomposition(scale):
    config = DecompositionConfig(tied=TIED, C=4, steps=STEPS, batch=8, schedule=Schedule(1e-2 * scale), warm_up=None)
    draw = partial(sparse, batch=8, p=0.7)
    state = SPD.init(config, tiny(), jax.eval_shape(draw, jax.random.key(0)), None)
    return partial(SPD.sampled_step(config, draw, state, tiny()), state, 0, tiny())


def apd(scale):
    config = APDConfig(tied=TIED, C=4, rank=2, steps=STEPS, batch=8, schedule=Schedule(1e-2 * scale))
    draw = partial(sparse, batch=8, p=0.7)
    state = APD.init(config, tiny(), jax.eval_shape(draw, jax.random.key(0)), None)
    return partial(APD.sampled_step(config, draw, state, tiny()), state, 0, tiny())


SLOW = [
    pytest.param(make, marks=pytest.mark.slow) for make in (dictionary, cross_layer, end_to_end, language_model, apd)
]


@pytest.mark.parametrize("make", [decomposition, *SLOW])
def test_rate_scale_is_a_lower_learning_rate(make):
    scaled, _ = jax.jit(make(1.0))(rate_scale=jnp.float32(SCALE))
    lower, _ = jax.jit(make(SCALE))()
    plain, _ = jax.jit(make(1.0))()
    scaled, lower, plain = bits(scaled), bits(lower), bits(plain)
    moved = 0
    for name in lower:
        np.testing.assert_allclose(scaled[name], lower[name], rtol=1e-5, atol=1e-7, err_msg=name)
        moved += not np.array_equal(plain[name], lower[name])
    assert moved, "the learning rate has no effect: the test cannot fail"


@pytest.mark.slow
def test_a_trainer_with_the_policy_gives_the_same_bits(tmp_path):
    config = variants.topk(SITES[1], k=2, **FIELDS)
    plain = train_dictionary(config, toy(), batch_at, log=Log(quiet=True))
    log = Log(quiet=True, on_nan=OnNan("lower-rate"))
    assert_same_bits(plain, train_dictionary(config, toy(), batch_at, run=tmp_path / "run", log=log))


@pytest.mark.slow
def test_trainers_that_cannot_lower_their_rate_are_named(tmp_path):
    log = Log(quiet=True, on_nan=OnNan("lower-rate"))
    joint = JointConfig((SAEConfig(SITES[0], n_features=8, activation=TopK(2)),), steps=2)
    with pytest.raises(UserError, match="joint: this trainer cannot lower its learning rate"):
        train_joint(joint, toy(), batch_at, optax.sgd(0.1), run=tmp_path / "joint", log=log)
    config = variants.topk(SITES[1], k=2, **FIELDS)
    with pytest.raises(UserError, match="sweep: this trainer cannot lower its learning rate"):
        train_sweep(config, Sweep(seeds=(0, 1)), toy(), batch_at, run=tmp_path / "sweep", log=log)


@pytest.mark.slow
def test_a_sampled_batch_is_a_function_of_its_number():
    """Or skipping batches would draw the same ones again."""
    config = DecompositionConfig(tied=TIED, C=4, steps=STEPS, batch=8, warm_up=None)
    draw = partial(sparse, batch=8, p=0.7)
    state = SPD.init(config, tiny(), jax.eval_shape(draw, jax.random.key(0)), None)
    step = jax.jit(SPD.sampled_step(config, draw, state, tiny()))
    first, again, later = (step(state, jnp.int32(number), tiny())[1]["loss"] for number in (0, 0, 5))
    assert first == again != later
