"""Monitors, and attacks on them, are on a mesh what they are on one device."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.models.sharding import rules_for
from jax_interp.probes import LinearProbe, from_tokens
from jax_interp.probes.monitors import (
    ControlOptions,
    EmbeddingAttack,
    GreedyCoordinate,
    ProbeMonitor,
    Surprise,
    control_evaluation,
)
from jax_interp.training.placement import on_mesh
from jax_interp.training.sharding import make_mesh, shard
from tests.distributed.trainable import CONFIG
from tests.distributed.trainable import model as decoder

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")
MESHES: dict[str, dict[str, int]] = {"2 × data": {"data": 2}, "2 × fsdp": {"fsdp": 2}, "2 × tensor": {"tensor": 2}}
SITE = "blocks.1.resid_post"


@functools.cache
def examples():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, CONFIG.vocab_size, (10, 8))
    mask = np.arange(8)[None, :] < rng.integers(5, 9, 10)[:, None]
    return from_tokens(tokens, mask, label=list("ab" * 5))


def monitors(model):
    probe = LinearProbe(jax.random.normal(jax.random.key(1), (CONFIG.d_model,)), jnp.zeros(()), jnp.zeros(()))
    return ProbeMonitor(model, probe, SITE, batch=8), Surprise(model, batch=8)


def attacked(model, mesh):
    """What two attacks leave of the scores of the probe."""
    data = examples().take(np.arange(4))
    at = np.broadcast_to(np.arange(8)[None], data.tokens.shape)
    data = dataclasses.replace(data, spans={"attack": (at == 1) | (at == 2), "assistant": at == 4})
    attacks = [GreedyCoordinate(2, 4, 4), EmbeddingAttack(0.5, 3)]
    with on_mesh(mesh):
        report = control_evaluation(
            model, monitors(model)[0], data, examples(), attacks, options=ControlOptions(fpr=0.2, batch=4)
        )
    return [of.score for of in report.figures]


@functools.cache
def on_one_device():
    return [monitor.scores(examples()) for monitor in monitors(decoder())], attacked(decoder(), None)


FAST = ("2 × fsdp", True)
CASES = [(name, explicit) for name in MESHES for explicit in (True, False)]


@pytest.mark.parametrize(
    ("name", "explicit"), [pytest.param(*case, marks=() if case == FAST else pytest.mark.slow) for case in CASES]
)
def test_a_mesh_gives_what_one_device_gives(name, explicit):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | MESHES[name]
    mesh = make_mesh(data=sizes["data"], fsdp=sizes["fsdp"], tensor=sizes["tensor"], explicit=explicit)
    model = shard(decoder(), rules_for(decoder()), mesh)
    scores, under_attack = on_one_device()
    for monitor, expected in zip(monitors(model), scores, strict=True):
        np.testing.assert_allclose(monitor.scores(examples()), expected, rtol=1e-4, atol=1e-4)
    if name != "2 × tensor":
        return  # an attack takes half a minute to compile
    for found, expected in zip(attacked(model, mesh), under_attack, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
