"""Training of steering: what a run of many members gives, alone and together, in pieces, and after a stop."""

from __future__ import annotations

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_steering
from test_steering_objectives import SITE, pairs, planted

from jax_interp.core.errors import UserError
from jax_interp.models import generate
from jax_interp.steering.trained import (
    ChangedTokens,
    LoReFTConfig,
    ReFTr1,
    ReFTr1Config,
    RePS,
    TrainedSteeringConfig,
    VectorConfig,
    train_steering,
)
from jax_interp.steering.trained.completions import texts_of
from jax_interp.surgery import Add, at, call, edit, replan
from jax_interp.training import QUIET, Interrupted, SaveTo
from tests.distributed.compiled_steps import compiled_step
from tests.training.same_bits import assert_same_bits

OPEN = ("blocks.resid_post",)
BASE = TrainedSteeringConfig(OPEN, LoReFTConfig(2), layers=(0, 1), seeds=(0, 1), steps=3, batch=4)
CONCEPTS = {"a": tiny_steering.completions(0), "b": tiny_steering.completions(1, 3)}
TOY = TrainedSteeringConfig(SITE, VectorConfig(norm=0.5), RePS(), seeds=(0, 1, 2), steps=4, batch=4)


@pytest.fixture(scope="module")
def together():
    """Two concepts, two layers and two seeds in one run."""
    return tiny_steering.losses(CONCEPTS, BASE)


def test_a_run_trains_every_concept_layer_and_seed(together):
    found, losses = together
    assert [(m.concept, m.layer, m.seed) for m in found.members] == [
        (concept, layer, seed) for concept in "ab" for layer in (0, 1) for seed in (0, 1)
    ]
    assert losses.shape == (3, 8)
    assert len(np.unique(losses[-1])) == 8
    assert list(found.member(concept="b", layer=1, seed=0).interventions) == ["blocks.1.resid_post"]
    with pytest.raises(UserError, match="4 members have concept='a'"):
        found.member(concept="a")
    with pytest.raises(UserError, match="no members have concept='c'"):
        found.member(concept="c")


def test_a_member_is_what_it_is_alone(together):
    """Within rounding: the products of a batch of members may add in another order."""
    found, losses = together
    config = dataclasses.replace(BASE, layers=(1,), seeds=(1,))
    alone, lonely = tiny_steering.losses({"b": CONCEPTS["b"]}, config)
    place = found.members.index(alone.members[0])
    np.testing.assert_allclose(losses[:, place], lonely[:, 0], rtol=1e-5)
    for mine, other in zip(jax.tree.leaves(found.at(place)), jax.tree.leaves(alone.at(0)), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


def test_the_loss_is_that_of_the_steered_model(together):
    """The loss of the first step is the cross-entropy of the completions, since LoReFT starts without a change."""
    _, losses = together
    data = CONCEPTS["a"]
    found = []
    for prompt, completion in zip(data.prompts, data.completions, strict=True):
        logits = call(tiny_steering.model(), jnp.asarray([[*prompt, *completion]]))[0]
        log_p = jax.nn.log_softmax(logits)
        found.append([-float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(completion)])
    order = np.random.default_rng((0, 0)).permutation(len(data))[:4]
    want = np.mean(np.concatenate([found[row] for row in order]))
    assert losses[0, 0] == pytest.approx(want, rel=1e-5)


def toy(config=TOY, run=None, log=QUIET):
    return train_steering(planted(normed=True), {"planted": pairs()}, config, run=run, log=log)


@pytest.fixture(scope="module")
def whole():
    return toy()


def test_pieces_of_members_give_what_all_at_once_give(whole):
    pieces = toy(dataclasses.replace(TOY, members_at_once=2))
    for mine, other in zip(jax.tree.leaves(pieces.interventions), jax.tree.leaves(whole.interventions), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5)


def test_a_run_that_was_stopped_ends_with_the_same_bits(whole, tmp_path):
    def stop(record):
        if record["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    target = SaveTo(tmp_path / "run", every=1)
    with pytest.raises(Interrupted):
        toy(run=target, log=dataclasses.replace(QUIET, every=1, on_record=stop))
    assert_same_bits(toy(run=target).interventions, whole.interventions)


def test_the_learning_rate_can_be_lowered_after_a_nan():
    from jax_interp.steering.trained.train import steering_step
    from jax_interp.training.rollback import takes_rate_scale

    assert takes_rate_scale(steering_step)


@pytest.mark.slow
def test_an_edited_model_is_steered_as_it_is():
    """Training on an edited model sees the edit: its first loss is the loss of the edited model."""
    v = 3 * jax.random.normal(jax.random.key(1), (16,))
    edited = edit(tiny_steering.model(), at("blocks.0.resid_post", Add(v)))
    config = dataclasses.replace(BASE, layers=(1,), seeds=(0,))
    records = []
    log = dataclasses.replace(QUIET, every=1, on_record=records.append)
    steering = train_steering(edited, {"a": CONCEPTS["a"]}, config, log=log).member()
    assert abs(records[0]["loss"] - tiny_steering.losses({"a": CONCEPTS["a"]}, config)[1][0, 0]) > 1e-3
    tokens = jnp.asarray([[1, 2, 3]], jnp.int32)
    assert generate(edit(edited, *steering.edits(2.0)), tokens, 3).shape == (1, 3)


@pytest.mark.slow
def test_reft_r1_at_several_layers_is_calibrated_on_its_own_texts():
    from jax_interp.surgery import values_at

    config = TrainedSteeringConfig(OPEN, ReFTr1Config(top=2), layers=(0, 1), steps=2, batch=4)
    found, _ = tiny_steering.losses(CONCEPTS, config)
    for member in found.members:
        steering = found.member(concept=member.concept, layer=member.layer)
        (address, one), *_ = steering.interventions.items()
        assert isinstance(one, ReFTr1)
        data = CONCEPTS[member.concept]
        texts = texts_of(data.prompts, data.completions, config.changed)
        x = values_at(tiny_steering.model(), address)(jnp.asarray(texts.tokens), mask=jnp.asarray(texts.mask))[address]
        latents = np.where(texts.mask, np.maximum(np.asarray(x @ one.unit), 0), 0)
        assert float(np.asarray(one.largest)) == pytest.approx(latents.max(), rel=1e-4)


def test_changed_tokens():
    tokens = ChangedTokens(skip=1, first=2, last=1)
    np.testing.assert_array_equal(np.flatnonzero(tokens.mask(6, 9)), [1, 2, 5])
    assert tokens.pos() == [1, 2, -1]
    np.testing.assert_array_equal(np.flatnonzero(ChangedTokens(skip=2).mask(4, 6)), [2, 3, 4, 5])
    assert ChangedTokens().pos() is None
    with pytest.raises(UserError, match="no token of text 0 is changed"):
        texts_of([(1,)], [(2,)], ChangedTokens(skip=5))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_model_in_half_precision_trains_interventions_in_float32(dtype, together):
    half = jax.tree.map(lambda leaf: leaf.astype(dtype), tiny_steering.model())
    records = []
    log = dataclasses.replace(QUIET, every=1, on_record=records.append)
    with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's attention mixes bfloat16 and float32
        found = train_steering(half, CONCEPTS, BASE, log=log)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.interventions)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose([r["members.loss"] for r in records], together[1], rtol=0.02)


@pytest.mark.slow
def test_a_list_of_blocks_trains_as_a_stack_of_blocks(together):
    model = tiny_steering.model()
    unrolled = replan(model, "*")
    records = []
    log = dataclasses.replace(QUIET, every=1, on_record=records.append)
    train_steering(unrolled, CONCEPTS, BASE, log=log)
    np.testing.assert_allclose([r["members.loss"] for r in records], together[1], rtol=1e-5)


@pytest.mark.slow
def test_pieces_of_members_need_the_memory_of_one_piece():
    many = dataclasses.replace(BASE, layers=(1,), seeds=tuple(range(16)))
    temporary = {}
    for at_once in (16, 2):
        config = dataclasses.replace(many, members_at_once=at_once)
        train = lambda place, config=config: train_steering(
            tiny_steering.model(), CONCEPTS, config, place=place, log=QUIET
        )
        analysis = compiled_step(train, None).compiled.memory_analysis()
        assert analysis is not None
        temporary[at_once] = analysis.temp_size_in_bytes
    assert temporary[2] < 0.4 * temporary[16], temporary
