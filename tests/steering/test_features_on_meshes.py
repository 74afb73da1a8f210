"""Steering with features, and effects of latents, on a mesh are what they are on one device."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_interp.dictionaries import TopK, init_sae
from jax_interp.dictionaries.sharding import rules
from jax_interp.models.sharding import rules_for
from jax_interp.steering.features import (
    gradient_effects,
    highest_activations,
    measured_effects,
    output_scores,
    steer_features,
    target_texts,
)
from jax_interp.surgery import call, edit
from jax_interp.training.sharding import make_mesh, shard, shard_batch
from tests.small_models import GPT2_LIKE, peaky

pytestmark = pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real")
ADDRESS, M = "blocks.1.resid_post", 24
CONFIG = dataclasses.replace(GPT2_LIKE, vocab_size=64)
TARGETS = target_texts([[1, 2, 3], [4, 5, 6], [7, 8, 9], [3, 2, 1]], [[10], [11], [12], [13]])


@functools.cache
def setting():
    dictionary = init_sae(jax.random.key(0), CONFIG.d_model, M, TopK(4))
    return peaky(CONFIG), dictionary, np.random.default_rng(0).integers(0, 64, (4, 6)).astype(np.int32)


def figures(model, dictionary, tokens, rows) -> dict[str, np.ndarray]:
    """Everything that runs a model with features."""
    found = {}
    strengths = jnp.asarray([[1.0], [2.0], [0.0], [-1.0]], jnp.float32)
    for how in ("add", "clamp"):
        steering = steer_features(dictionary, ADDRESS, [3, 8], 2.0, how)
        found[how] = np.asarray(call(edit(model, *steering.edits(strengths)), rows))
        every = steer_features(dictionary, ADDRESS, range(M), 2.0, how)
        found[f"{how}: first order"] = gradient_effects(model, every, TARGETS).values
        found[f"{how}: measured"] = measured_effects(model, every, TARGETS, at_once=8).values
    found["scores"] = output_scores(model, every, [[5, 6]]).rise
    found["highest"] = highest_activations(model, ADDRESS, dictionary, [(tokens, np.ones_like(tokens, bool))])
    return found


@functools.cache
def on_one_device() -> dict[str, np.ndarray]:
    model, dictionary, tokens = setting()
    return figures(model, dictionary, tokens, tokens)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "automatic"])
@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_a_mesh_gives_what_one_device_gives(axis, explicit):
    model, dictionary, tokens = setting()
    mesh = make_mesh(**{"data": 1, axis: 2}, explicit=explicit)
    with jax.set_mesh(mesh):
        placed = shard(model, rules_for(model), mesh), shard(dictionary, rules(dictionary), mesh)
        found = figures(*placed, tokens, shard_batch(tokens, mesh))
    for name, want in on_one_device().items():
        np.testing.assert_allclose(found[name], want, atol=2e-4 * max(1.0, np.abs(want).max()), err_msg=name)
