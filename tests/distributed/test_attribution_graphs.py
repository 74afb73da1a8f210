"""The attribution graph of a mesh is that of one device, and its devices share the targets and the weights."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from jax_interp.circuits.attribution_graphs import Limits, attribution_graph
from jax_interp.circuits.attribution_graphs import attribute as module
from jax_interp.dictionaries.activations import ReLU
from jax_interp.models.sharding import rules
from jax_interp.training.sharding import make_mesh, shard
from tests.circuits.attribution_graphs.graph_models import TOKENS, local_model

pytestmark = pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices, simulated or real")
LIMITS = Limits(batch=15, programs=1, max_features=40, update=1)


@pytest.mark.parametrize("axis", ["data", "fsdp"])
def test_a_graph_on_two_devices_is_that_of_one(axis, monkeypatch):
    local = local_model(ReLU())
    alone = attribution_graph(local, TOKENS, LIMITS)
    mesh = make_mesh(devices=jax.devices()[:2], explicit=False, **{"data": 1, "fsdp": 1, axis: 2})
    if axis == "fsdp":
        local = dataclasses.replace(local, model=shard(local.model, rules(local.model.config), mesh))
    shards = []
    compiled = module.rows_of_features

    def watched(linear, targets, *, stop):
        rows = compiled(linear, targets, stop=stop)
        shards.append({shard.data.shape[0] for shard in rows.addressable_shards})
        return rows

    monkeypatch.setattr(module, "rows_of_features", watched)
    shared = attribution_graph(local, TOKENS, LIMITS, mesh=mesh)
    np.testing.assert_array_equal(shared.selected, alone.selected)
    np.testing.assert_allclose(shared.weights, alone.weights, rtol=1e-4, atol=1e-5)
    assert shards
    assert all(sizes == {8} for sizes in shards)  # half of 16, to which 15 is rounded
