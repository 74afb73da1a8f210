"""Training of steering: what a run of many members gives, alone and together, and after a stop."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
import tiny_steering

from jax_interp.steering.trained import (
    LoReFTConfig,
    TrainedSteeringConfig,
)

OPEN = ("blocks.resid_post",)
BASE = TrainedSteeringConfig(OPEN, LoReFTConfig(2), layers=(0, 1), seeds=(0, 1), steps=3, batch=4)
CONCEPTS = {"a": tiny_steering.completions(0), "b": tiny_steering.completions(1, 3)}


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


def test_a_member_is_what_it_is_alone(together):
    """Within rounding: the products of a batch of members may add in another order."""
    found, losses = together
    config = dataclasses.replace(BASE, layers=(1,), seeds=(1,))
    alone, lonely = tiny_steering.losses({"b": CONCEPTS["b"]}, config)
    place = found.members.index(alone.members[0])
    np.testing.assert_allclose(losses[:, place], lonely[:, 0], rtol=1e-5)
    for mine, other in zip(jax.tree.leaves(found.at(place)), jax.tree.leaves(alone.at(0)), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)


def test_pieces_of_members_give_what_all_at_once_give(together):
    found, losses = together
    pieces, by_pieces = tiny_steering.losses(CONCEPTS, dataclasses.replace(BASE, members_at_once=3))
    np.testing.assert_allclose(by_pieces, losses, rtol=1e-5)
    for mine, other in zip(jax.tree.leaves(pieces.interventions), jax.tree.leaves(found.interventions), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-4)
