"""A model and its dictionaries in one loss: against float64 written from the equation, and the exact resume."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import batch_at, toy

from jax_interp.core.config_json import from_json, to_json, upgrade
from jax_interp.core.errors import UserError
from jax_interp.dictionaries import variants
from jax_interp.dictionaries.activations import Gated, ReLU
from jax_interp.dictionaries.forms import init_sae
from jax_interp.dictionaries.losses import L1, AuxK, OverNorm, Reconstruction
from jax_interp.dictionaries.training.config import Adam, EndToEndSAEConfig, SAEConfig
from jax_interp.dictionaries.training.joint import (
    JointConfig,
    init_joint_state,
    joint_step,
    next_token,
    train_joint,
)
from jax_interp.dictionaries.training.spliced import kept_rows
from jax_interp.training import QUIET, Log, NonFinite

SITES = ("blocks.0.resid_pre", "blocks.2.resid_post")
COEFFICIENTS = (0.02, 0.07)
CONFIG = JointConfig(
    tuple(
        SAEConfig(site, 24, ReLU(), (L1(c, "l1_of_norms", warmup=0.0),), decoder="free", dead_after=300)
        for site, c in zip(SITES, COEFFICIENTS)
    ),
    steps=12,
)


def reference(params, tokens, keep, rows, strength=3.0):
    """L = CE + mean_l [λ R_l / N_l + S_l], without surgery."""
    E, U, blocks, saes = params
    x = E[tokens]
    read = [x]
    for W in blocks:
        before = jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
        x = x + jnp.tanh((x + before) @ W)
    read.append(x)
    log_p = jax.nn.log_softmax(x @ U, axis=-1)[:, :-1]
    counted = keep[:, :-1] & keep[:, 1:]
    ce = -(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0] * counted).sum() / counted.sum()
    parts = []
    for p, value, c in zip(saes, read, COEFFICIENTS):
        v = value.reshape(-1, value.shape[-1])[rows]
        f = jax.nn.relu((v - p["b_dec"]) @ p["W_enc"] + p["b_enc"])
        R = ((v - f @ p["W_dec"] - p["b_dec"]) ** 2).sum(1).mean()
        N = jnp.sqrt((v**2).sum(1)).mean()
        parts.append(strength * R / N + c * (f * jnp.sqrt((p["W_dec"] ** 2).sum(1))).sum(1).mean())
    return ce + sum(parts) / len(parts)


def test_loss_and_every_gradient_equal_the_equation_the_models_too():
    """One step of gradient descent with rate 1: what changed is the gradient."""
    tokens, keep = batch_at(3)
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = jax.tree.map(lambda a: a.astype(jnp.float64), toy())
        draw = np.random.default_rng(0).standard_normal
        shapes = {"W_enc": (16, 24), "b_enc": (24,), "W_dec": (24, 16), "b_dec": (16,)}
        saes = [{name: jnp.asarray(draw(shape) * 0.3) for name, shape in shapes.items()} for _ in SITES]
        fresh = init_sae(jax.random.key(0), 16, 24, ReLU())
        sgd = optax.sgd(1.0)
        state = init_joint_state(CONFIG, model, tokens, sgd, [dataclasses.replace(fresh, **p) for p in saes])
        rows = np.asarray(kept_rows(keep, jax.random.split(state.key, 3)[1])[0])
        after, metrics = jax.jit(partial(joint_step, CONFIG, sgd, next_token))(state, (tokens, keep))
        params = (model.E, model.U, [block.W for block in model.blocks], saes)
        value, grad = jax.jit(jax.value_and_grad(reference))(params, tokens, keep, rows)
        close = partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-10)
        close(metrics["loss"], value)
        close(model.E - after.model.E, grad[0])
        close(model.U - after.model.U, grad[1])
        for block, new, g in zip(model.blocks, after.model.blocks, grad[2], strict=True):
            close(block.W - new.W, g)
        for p, new, g in zip(saes, after.dictionaries, grad[3], strict=True):
            for name in p:
                close(p[name] - getattr(new, name), g[name], err_msg=name)


def test_a_model_that_is_held_fixed_stays_as_it_is_and_others_learn():
    model, log = toy(), []
    config = dataclasses.replace(CONFIG, shared=(Reconstruction(kind="sse"),), train="dictionaries", steps=30)
    same, saes = train_joint(
        config, model, batch_at, optax.adam(3e-3), log=Log(every=1, on_record=log.append, quiet=True)
    )
    assert same is model
    assert "task" not in log[0]
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]
    assert [d.W_dec.shape for d in saes] == [(24, 16)] * 2


def test_a_batch_of_which_nothing_is_kept_stops_the_run():
    """Its loss would be that of a row that should not be seen."""
    config = dataclasses.replace(CONFIG, train="dictionaries")
    nothing = lambda i: (batch_at(i)[0], batch_at(i)[1] & (i != 1))
    with pytest.raises(NonFinite, match="step 2"):
        train_joint(config, toy(), nothing, optax.adam(1e-3), log=QUIET)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"dictionaries": ()}, "at least one"),
        ({"dictionaries": (variants.topk(SITES[0]),)}, r"is a DictionaryConfig: give SAEConfig.of"),
        ({"steps": 0}, "steps=0"),
        (
            {"dictionaries": (SAEConfig.of(variants.matching_pursuit(SITES[0])),), "shared": (AuxK(),)},
            "AuxK trains the encoder",
        ),
    ],
)
def test_a_config_that_cannot_be_is_refused(bad, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(CONFIG, **bad)


def test_a_variant_is_an_sae_inside_a_model_where_it_can_be():
    resampled = variants.relu(SITES[0], n_features=24)
    assert EndToEndSAEConfig.of(resampled).resampling == resampled.resampling
    assert SAEConfig.of(variants.gated(SITES[0])).activation == Gated()
    for config, says in (
        (variants.crosscoder(SITES), "which write the one value that they read"),
        (variants.transcoder(*SITES), "which write the one value that they read"),
        (resampled, "sets resampling=.* leave it out .*AuxK"),
        (variants.topk(SITES[0], steps=12), "sets steps=12, .* give the trainer's config the steps"),
        (variants.topk(SITES[0], matmul="bfloat16"), "default_matmul_precision"),
    ):
        with pytest.raises(UserError, match=says):
            SAEConfig.of(config)


def test_a_config_of_an_earlier_version_is_read_as_what_it_meant():
    """It had a whole `DictionaryConfig` for each dictionary, of which joint training used some fields."""
    config = dataclasses.replace(CONFIG, shared=(OverNorm(0.1), AuxK()))
    older = to_json(config)
    for one, sae in zip(older["dictionaries"], config.dictionaries, strict=True):
        one |= {"type": "DictionaryConfig", "address": [sae.address], "writes": None, "skip": False, "few": [64, 256]}
        one |= {"resampling": None, "steps": 7, "optimizer": to_json(Adam()), "matmul": None, "buffer": 65536}
    assert upgrade(json.loads(json.dumps(older))) == to_json(config)
    assert from_json(JointConfig, older) == config == from_json(JointConfig, to_json(config))
