"""Trained steering on two devices: the losses of a run are those of one device."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

from jax_interp.steering.trained import (
    BiPO,
    LanguageModelling,
    LoReFTConfig,
    ReFTr1Config,
    RePS,
    ScaledVectorConfig,
    TrainedSteeringConfig,
    VectorConfig,
)
from jax_interp.training.sharding import make_mesh
from tests.steering.trained import tiny_steering

pytestmark = [
    pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices, simulated or real"),
    pytest.mark.slow,
]
OPEN = ("blocks.resid_post",)
CASES = {
    "LoReFT": (LoReFTConfig(2), LanguageModelling()),
    "ReFT-r1": (ReFTr1Config(top=2), LanguageModelling()),
    "RePS": (ScaledVectorConfig(), RePS()),
    "BiPO": (VectorConfig(norm=1.0), BiPO()),
}


@functools.cache
def trained(case, axis=None, explicit=False, at_once=8):
    intervention, objective = CASES[case]
    config = TrainedSteeringConfig(
        OPEN, intervention, objective, layers=(0, 1), steps=3, batch=4, members_at_once=at_once
    )
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | ({axis: 2} if axis else {})
    place = make_mesh(devices=jax.devices()[:2], explicit=explicit, **sizes) if axis else None
    concepts = {str(seed): tiny_steering.questions(seed) for seed in (0, 1)}
    return tiny_steering.losses(concepts, config, place=place)


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
@pytest.mark.parametrize("case", CASES)
def test_two_devices_train_what_one_trains(case, axis):
    found, losses = trained(case, axis)
    alone, lonely = trained(case)
    np.testing.assert_allclose(losses, lonely, rtol=1e-4, atol=1e-5)
    for mine, other in zip(jax.tree.leaves(found.interventions), jax.tree.leaves(alone.interventions), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-3)


@pytest.mark.parametrize(("explicit", "at_once"), [(True, 8), (True, 3), (False, 3)])
def test_explicit_axes_and_pieces_of_members_change_nothing(explicit, at_once):
    losses = trained("LoReFT", "data", explicit, at_once)[1]
    np.testing.assert_allclose(losses, trained("LoReFT")[1], rtol=1e-4, atol=1e-5)
