"""Adapters and the losses of defences: exact at the start, closed forms, and padding never counts."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.core.errors import UserError
from jax_interp.probes.monitors.defences import Adapters, LoRAHeadConfig, ReroutingConfig, merged, reroute
from jax_interp.probes.monitors.defences.adapters import layers_up_to, split_adapters
from jax_interp.probes.monitors.defences.adapters import moved as with_noise
from jax_interp.probes.monitors.defences.examples import draws, texts_of
from jax_interp.probes.monitors.defences.lora_head import train_lora_head
from jax_interp.probes.monitors.defences.rerouting import coefficients, rerouting_loss, rerouting_losses
from jax_interp.probes.monitors.defences.retention import hidden_distance, norm, retention_loss
from jax_interp.training import QUIET
from tests.probes.defences.tiny_requests import data, model, texts, with_other_padding

ADAPTERS = Adapters(parts=("attn.v", "mlp.up"), rank=2, alpha=4.0)


def moved(adapted):
    """The model with adapters that do something."""
    trained, rest = split_adapters(adapted)
    return ADAPTERS.joined(with_noise(trained, 0.3, jax.random.key(3)), rest)


def run(model, batch):
    return jax.jit(lambda model, batch: model(batch.tokens, mask=batch.mask))(model, batch)


def test_new_adapters_change_no_bit_and_merged_ones_are_the_same_function():
    base, batch = model(), texts()
    adapted = ADAPTERS.into(base, jax.random.key(1))
    np.testing.assert_array_equal(run(adapted, batch), run(base, batch))
    other = moved(adapted)
    assert np.abs(run(other, batch) - run(base, batch)).max() > 0.01
    np.testing.assert_allclose(run(merged(other), batch), run(other, batch), rtol=1e-4, atol=1e-5)
    assert jax.tree.structure(merged(other)) == jax.tree.structure(base)


@pytest.mark.slow
def test_at_the_start_everything_points_where_it_pointed_and_nothing_has_moved():
    """L_s = 1, L_r = 0, both retentions 0, and finite gradients, although a norm has a kink at 0."""
    base, batch = model(), texts()
    adapters, rest = split_adapters(ADAPTERS.into(base, jax.random.key(1)))
    config = ReroutingConfig(layers=(0, 2))

    @jax.jit
    def losses(adapters):
        adapted = ADAPTERS.joined(adapters, rest)
        kept = [retention_loss(kind, adapted, base, batch) for kind in ("kl", "hidden")]
        return jnp.stack([*rerouting_losses(config, adapted, base, batch, batch), *kept])

    np.testing.assert_allclose(losses(adapters), [1, 0, 0, 0], atol=1e-6)
    for gradient in jax.tree.leaves(jax.jit(jax.jacobian(losses))(adapters)):
        assert np.isfinite(gradient).all()


def test_losses_are_their_formulas_on_real_tokens_alone():
    rng = np.random.default_rng(0)
    new, old = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    keep = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]], bool)
    new[:, ~keep] = np.nan  # what is at padding never counts
    cosine = (new * old).sum(-1) / np.linalg.norm(new, axis=-1) / np.linalg.norm(old, axis=-1)
    far = np.linalg.norm(new - old, axis=-1)
    np.testing.assert_allclose(
        rerouting_loss(new, old, jnp.asarray(keep)), np.maximum(cosine, 0)[:, keep].mean(), rtol=1e-5
    )
    np.testing.assert_allclose(hidden_distance(new, old, jnp.asarray(keep)), far[:, keep].mean(), rtol=1e-5)
    assert float(rerouting_loss(-old, old, jnp.asarray(keep))) == 0
    np.testing.assert_allclose(jax.grad(lambda x: norm(x))(jnp.zeros(3)), 0)


@pytest.mark.parametrize("kind", ["kl", "hidden"])
def test_ids_at_padding_never_count(kind):
    base, batch = model(), texts()
    adapted = moved(ADAPTERS.into(base, jax.random.key(1)))
    loss = jax.jit(lambda batch: retention_loss(kind, adapted, base, batch))
    assert float(loss(batch)) > 1e-4
    np.testing.assert_allclose(loss(with_other_padding(batch)), loss(batch), rtol=1e-5)


def test_the_schedules_of_the_paper():
    """α = 10, T = 150: from (10, 0) to nearly (5, 5), and always 10 together."""
    config = ReroutingConfig(layers=(0,))
    c = np.array([coefficients(config, jnp.asarray(step)) for step in (0, 75, 150)])
    np.testing.assert_allclose(c, [[10, 0], [7.5, 2.5], [5, 5]], rtol=1e-6)


@pytest.mark.slow
def test_only_the_layers_up_to_the_head_are_trained_and_a_run_is_resumed_exactly(tmp_path):
    config = LoRAHeadConfig("blocks.1.resid_post", steps=3, batch=4, learning_rate=0.01, adapters=ADAPTERS)
    whole = train_lora_head(config, model(), data(), log=QUIET)
    trained, _ = split_adapters(whole.model)
    b = trained.blocks[0].block.mlp.up.low_rank.b[...]
    assert (np.abs(b[:2]).max(axis=(1, 2)) > 0).all()
    assert not np.any(b[2])
    assert layers_up_to("blocks.-1.resid_post", 3) == layers_up_to("ln_final.normalized", 3) == (0, 1, 2)

    records = []
    log = dataclasses.replace(QUIET, every=1, on_record=records.append)
    train_lora_head(config, model(), data(), run=tmp_path / "run", log=log)
    again = train_lora_head(config, model(), data(), run=tmp_path / "run", log=QUIET)  # nothing is left to do
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(one, other)
    assert records[-1]["bce"] < records[0]["bce"]
    np.testing.assert_allclose(records[0]["bce"], np.log(2), rtol=1e-5)  # the head starts at 0


def test_rerouting_turns_harmful_representations_away():
    records = []
    config = ReroutingConfig((1,), steps=6, batch=8, learning_rate=0.02, adapters=ADAPTERS)
    found = reroute(config, model(), data(), log=dataclasses.replace(QUIET, every=1, on_record=records.append))
    assert found.alarm is None
    np.testing.assert_allclose([records[0]["reroute"], records[0]["retain"]], [1, 0], atol=0.05)
    np.testing.assert_allclose(records[0]["loss"], 10 * records[0]["reroute"], rtol=1e-5)
    assert records[-1]["reroute"] < 0.9


def test_draws_are_balanced_and_the_same_for_the_same_step():
    at = draws(data().train, 8, 0, balanced=True)
    assert at(3).harmful.sum() == 4
    np.testing.assert_array_equal(at(3).tokens, at(3).tokens)
    assert (at(3).tokens != at(4).tokens).any()


def test_what_cannot_be_trained_is_refused():
    train = data().train
    with pytest.raises(UserError, match="no layer 3 to reroute"):
        reroute(ReroutingConfig((3,)), model(), data(), log=QUIET)
    with pytest.raises(UserError, match="an alarm reads one value"):
        train_lora_head(LoRAHeadConfig("blocks.*.resid_post"), model(), data(), log=QUIET)
    with pytest.raises(UserError, match="one vector per token"):
        train_lora_head(LoRAHeadConfig("blocks.1.attn.z"), model(), data(), log=QUIET)
    with pytest.raises(UserError, match="has no span 'response'"):
        texts_of(dataclasses.replace(train, spans={"request": train.spans["request"]}))
    with pytest.raises(UserError, match="has padding in it"):
        texts_of(dataclasses.replace(train, spans=train.spans | {"request": np.ones_like(train.mask)}))
    with pytest.raises(UserError, match="benign examples only"):
        dataclasses.replace(data(), retain=train)
    with pytest.raises(UserError, match="needs harmful and benign examples"):
        draws(data().retain, 8, 0, balanced=True)
    with pytest.raises(UserError, match="there is no layer 7"):
        Adapters(layers=(7,)).into(model(), jax.random.key(0))
