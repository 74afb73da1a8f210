"""The adapters of defences on two devices: the losses of a run are those of one device."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jax_interp.probes.monitors.defences import Adapters, LoRAHeadConfig, ReroutingConfig, reroute, train_lora_head
from jax_interp.training import QUIET
from jax_interp.training.sharding import make_mesh
from tests.probes.defences.tiny_requests import data, model

pytestmark = pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices, simulated or real")
ADAPTERS = Adapters(parts=("attn.v", "mlp.up"), rank=2, alpha=4.0)
TRAINERS = {
    "head": lambda **where: train_lora_head(
        LoRAHeadConfig("blocks.1.resid_post", steps=2, batch=4, learning_rate=0.01, adapters=ADAPTERS),
        model(), data(), **where,
    ),
    "rerouting": lambda **where: reroute(
        ReroutingConfig((1,), steps=2, batch=4, learning_rate=0.01, adapters=ADAPTERS), model(), data(), **where
    ),
}  # fmt: skip


@functools.cache
def alone(trainer):
    return records(trainer, None)


def records(trainer, place):
    found = []
    log = dataclasses.replace(QUIET, every=1, on_record=found.append)
    TRAINERS[trainer](place=place, log=log)
    return [list(record.values()) for record in found]


FAST = {("head", "fsdp"), ("rerouting", "tensor")}
CASES = [(trainer, axis) for trainer in TRAINERS for axis in ("data", "fsdp", "tensor")]


@pytest.mark.parametrize(
    ("trainer", "axis"), [pytest.param(*case, marks=() if case in FAST else pytest.mark.slow) for case in CASES]
)
def test_two_devices_train_what_one_trains(trainer, axis):
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, axis: 2}
    mesh = make_mesh(devices=jax.devices()[:2], explicit=False, **sizes)
    np.testing.assert_allclose(records(trainer, mesh), alone(trainer), rtol=1e-3, atol=1e-4)
