"""Path patching on a mesh of eight host devices equals one device."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from small_models import GPT2_LIKE, peaky

from jax_interp.circuits import LogitDifference, make_contrast
from jax_interp.circuits.paths import patch_paths, path_patch
from jax_interp.models.sharding import rules
from jax_interp.training.sharding import make_mesh, shard, shard_batch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(len(jax.devices()) < 8, reason="needs eight devices, simulated or real"),
]


def test_paths_on_a_mesh_with_explicit_axes_equal_one_device():
    rng = np.random.default_rng(0)
    clean, corrupted = (rng.integers(0, 60, (4, 6), np.int32) for _ in range(2))
    model, contrast = peaky(GPT2_LIKE), make_contrast(clean, corrupted, LogitDifference(3, 7))

    def run(model, contrast):
        senders = ["a0.h1", "m0", "input", ("a1.h2", -1)]
        one_by_one = path_patch(model, contrast, senders, ["a2.h1<q>", "m2", "a2.h1<k>"]).values
        return one_by_one, patch_paths(model, contrast, [("a0.h1", "m0", "a1.h0<k>", "logits")]).values

    expected = run(model, contrast)
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=True)
    with jax.set_mesh(mesh):
        placed = dataclasses.replace(
            contrast, clean=shard_batch(contrast.clean, mesh), corrupted=shard_batch(contrast.corrupted, mesh)
        )
        got = run(shard(model, rules(GPT2_LIKE), mesh), placed)
    for here, there in zip(got, expected, strict=True):
        np.testing.assert_allclose(here, there, rtol=0, atol=2e-5)
