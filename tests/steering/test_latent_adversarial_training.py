"""Latent adversarial training: budgets that hold, losses in closed form, exact resume, and a model that resists."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.probes.monitors.defences import (
    Adapters,
    Defended,
    LatentAttack,
    attack,
    merged,
)
from jax_interp.probes.monitors.defences.adapters import split_adapters
from jax_interp.probes.monitors.defences.examples import texts_of
from jax_interp.probes.monitors.defences.latent_attack import edits_of
from jax_interp.steering.adversarial import (
    LatentAdversarialConfig,
    Weights,
    strongest,
    train_against_perturbations,
    with_refusal,
)
from jax_interp.steering.adversarial.losses import response_losses, unlikelihood
from jax_interp.toys.harmful_requests import REFUSE
from jax_interp.training import QUIET, SaveTo
from jax_interp.training.meshes import make_mesh
from tests.probes.defences.tiny_requests import data, model

ATTACK = LatentAttack(("blocks.1.mlp_out", "embed"), 0.5, steps=2, rate=1.0)
ADAPTERS = Adapters(parts=("attn.v", "mlp.up"), rank=2, alpha=4.0)
CONFIG = LatentAdversarialConfig(
    ATTACK, (REFUSE,) * 3, updates=2, steps=3, batch=4, learning_rate=0.01, adapters=ADAPTERS
)


@pytest.fixture(scope="module")
def pair():
    train = data().train
    both = with_refusal(train.take(np.flatnonzero(train.labels == 1)[:4]), CONFIG.refusal)
    return [jax.tree.map(jnp.asarray, texts_of(one)) for one in both]


@pytest.fixture(scope="module")
def found_by_size(pair):
    """Attacks on the input of an MLP, of growing size: ε, a step of the length ε, 16 steps."""
    found = {}
    for size in (0.0, 0.25, 0.5):
        budget = LatentAttack(("blocks.1.mlp_in",), size, steps=16, rate=1.0)
        found[size] = attack(budget, Defended(model()), pair[0], jax.random.key(0))
    return found


@pytest.mark.slow
def test_the_attack_lowers_the_loss_and_its_budget_is_used_up(found_by_size, pair):
    size = jnp.linalg.norm(found_by_size[0.5].perturbation["blocks.1.mlp_in"], axis=-1)
    np.testing.assert_allclose(jnp.max(size), 0.5, rtol=1e-6)
    assert not np.any(np.where(pair[0].request, 0, size))
    loss = [np.asarray(found.loss) for found in found_by_size.values()]
    assert (loss[1] < loss[0]).all()
    assert (loss[2] < loss[1]).all()  # more room is never worse


@pytest.mark.slow
def test_without_a_budget_no_bit_changes(found_by_size, pair):
    delta = found_by_size[0.0].perturbation
    run = jax.jit(lambda delta: Defended(model())(pair[0], edits_of(delta))[0])
    clean = jax.jit(lambda: Defended(model())(pair[0])[0])
    np.testing.assert_array_equal(run(delta), clean())


def test_a_refusal_stands_where_the_response_stood(pair):
    harmful, refused = pair
    first = np.argmax(np.asarray(harmful.response), axis=1)
    for row, start in enumerate(first):
        np.testing.assert_array_equal(refused.tokens[row, : start + 1], harmful.tokens[row, : start + 1])
        np.testing.assert_array_equal(refused.tokens[row, start + 1 : start + 4], REFUSE)
        assert int(refused.mask[row].sum()) == start + 4
        assert int(refused.response[row].sum()) == 4
    np.testing.assert_array_equal(refused.request, harmful.request)
    long = with_refusal(data().train, (REFUSE,) * 30)
    assert long[0].tokens.shape == long[1].tokens.shape
    assert np.asarray(long[1].spans["response"]).sum(axis=1).max() == 31


def test_the_loss_away_from_a_token_is_finite_where_it_is_certain():
    logits = jnp.asarray([[0.0, 1.0, 2.0], [0.0, 200.0, 0.0]])
    p = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    np.testing.assert_allclose(
        unlikelihood(logits, jnp.asarray([2, 1])), [-np.log(1 - p[2]), 200 - np.log(2)], rtol=1e-5
    )


def test_the_losses_are_the_formulas_on_the_tokens_of_the_response(pair):
    harmful, refused = pair
    toward, away = jax.jit(lambda m: response_losses(Weights(), m, refused, harmful, {}))(model())
    of = jax.jit(lambda m, texts: jax.nn.softmax(m(texts.tokens, mask=texts.mask).astype(jnp.float32), axis=-1))
    for texts, got, loss in ((refused, toward, lambda p: -np.log(p)), (harmful, away, lambda p: -np.log1p(-p))):
        p = np.take_along_axis(np.asarray(of(model(), texts))[:, :-1], np.asarray(texts.tokens)[:, 1:, None], 2)[..., 0]
        keep = np.asarray(texts.predicts())
        np.testing.assert_allclose(got, [loss(row[k]).mean() for row, k in zip(p, keep)], rtol=1e-4)


def test_the_attacker_sees_both_responses(pair):
    """Its loss is below that of no perturbation, and with `response` the tokens of both responses are perturbed."""
    config = dataclasses.replace(CONFIG, attack=dataclasses.replace(ATTACK, response=True))
    harmful, refused = pair
    found = jax.jit(lambda m: strongest(config, m, harmful, refused, jax.random.key(0)))(model())
    toward, away = jax.jit(lambda m: response_losses(Weights(), m, harmful, refused, {}))(model())
    assert (np.asarray(found.loss) < np.asarray(toward + away)).all()
    size = np.linalg.norm(found.perturbation["embed"], axis=-1)
    allowed = np.asarray(harmful.request | harmful.response | refused.response)
    assert size.max() <= 0.5 * (1 + 1e-5)
    assert not size[~allowed].any()
    assert size[allowed].mean() > 0.1


@pytest.fixture(scope="module")
def trained():
    records = []
    log = dataclasses.replace(QUIET, every=1, on_record=records.append)
    return train_against_perturbations(CONFIG, model(), data(), log=log), records


def test_a_step_lowers_the_loss_and_the_merged_model_is_the_same(trained, pair):
    defended, records = trained
    assert defended.alarm is None
    assert records[-1]["loss"] < records[0]["loss"]
    run = jax.jit(lambda model, texts: model(texts.tokens, mask=texts.mask))
    np.testing.assert_allclose(run(merged(defended.model), pair[0]), run(defended.model, pair[0]), rtol=1e-4, atol=1e-5)
    fresh = ADAPTERS.into(model(), jax.random.key(0))
    np.testing.assert_array_equal(run(fresh, pair[0]), run(model(), pair[0]))


@pytest.mark.slow
@pytest.mark.parametrize("axes", [{"data": 2}, {"fsdp": 2}, {"tensor": 2}], ids=str)
def test_a_mesh_trains_what_one_device_trains(trained, axes):
    records = []
    log = dataclasses.replace(QUIET, every=1, on_record=records.append)
    train_against_perturbations(CONFIG, model(), data(), place=make_mesh(**axes), log=log)
    for one, other in zip(records, trained[1], strict=True):
        for name in ("attack", "loss", "benign"):
            np.testing.assert_allclose(one[name], other[name], rtol=2e-2)
    np.testing.assert_allclose(records[0]["attack"], trained[1][0]["attack"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("benign", ["kl", "hidden"])
def test_a_run_is_resumed_bit_for_bit(benign, tmp_path):
    config = dataclasses.replace(CONFIG, benign=benign, attack=dataclasses.replace(ATTACK, restarts=2))
    whole = train_against_perturbations(config, model(), data(), log=QUIET)

    def die(record):
        if record["step"] == 2:
            raise RuntimeError("killed")

    log = dataclasses.replace(QUIET, every=1, on_record=die)
    with pytest.raises(RuntimeError, match="killed"):
        train_against_perturbations(config, model(), data(), run=SaveTo(tmp_path / "run", every=1), log=log)
    again = train_against_perturbations(config, model(), data(), run=SaveTo(tmp_path / "run", every=1), log=QUIET)
    for one, other in zip(
        jax.tree.leaves(split_adapters(again.model)[0]), jax.tree.leaves(split_adapters(whole.model)[0])
    ):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match="names a value twice"):
        LatentAttack(("embed", "embed"), 1.0)
    with pytest.raises(UserError, match="has no tokens"):
        dataclasses.replace(CONFIG, refusal=())
    with pytest.raises(UserError, match="one is above 0"):
        Weights(0.0, 0.0)
    train = data().train
    flipped = dataclasses.replace(
        train, tokens=train.tokens[:, ::-1], mask=train.mask[:, ::-1], readable=train.readable[:, ::-1],
        spans={name: span[:, ::-1] for name, span in train.spans.items()},
    )  # fmt: skip
    with pytest.raises(UserError, match="padded on the left"):
        with_refusal(flipped, (REFUSE,))
