"""A dictionary over eight devices: where its weights are, and the traffic that one would write by hand."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jax_interp.dictionaries import variants
from jax_interp.dictionaries.sharding import rules
from jax_interp.dictionaries.training.config import Adam, CrossLayerConfig
from jax_interp.dictionaries.training.cross_layer import init_cross_layer_learner
from jax_interp.dictionaries.training.train import init_learner, learn
from jax_interp.training.sharding import make_mesh, shard, shard_batch, specs

FIELDS = {"n_features": 64, "steps": 20, "buffer": 256, "dead_after": 200, "optimizer": Adam(warmup=2)}
ADDRESS = "blocks.1.resid_post"
VARIANTS = {
    "relu": variants.relu(ADDRESS, 0.02, **FIELDS),
    "topk": variants.topk(ADDRESS, 4, **FIELDS),
}


def test_a_cross_layer_dictionary_is_split_by_feature_whatever_it_writes():
    config = CrossLayerConfig(("a", "b", "c"), n_features=64, steps=5)
    learner = init_cross_layer_learner(config, jax.random.key(0), (16,) * 3, jnp.zeros(48))
    placed = specs(learner, rules(learner))
    for moment in ("dictionary.", ".mu.", ".nu."):
        found = {spec for name, spec in placed.items() if moment in name and name.endswith("W_dec")}
        assert found == {P("tensor", None, "fsdp")}, moment


def traffic(config, rows, d, **mesh_shape):
    """{collective: [number of elements of each]} of the compiled step."""
    mesh = make_mesh(explicit=False, **mesh_shape)
    with jax.set_mesh(mesh):
        learner = init_learner(config, jax.random.key(0), (d,), jnp.zeros(d))
        learner = shard(learner, rules(learner), mesh)
        x = shard_batch(jnp.ones((rows, d)), mesh)
        text = jax.jit(partial(learn, config)).lower(learner, x, jnp.ones(1)).compile().as_text()
    found: dict[str, list[int]] = {}
    pattern = r"= (\(?[^=]*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
    for shapes, kind in re.findall(pattern, text):
        for shape in re.findall(r"[a-z]+[0-9]*\[([0-9,]*)\]", shapes):
            found.setdefault(kind, []).append(int(np.prod([int(n) for n in shape.split(",") if n])))
    return found


def test_what_travels_is_what_one_would_write_by_hand():
    """4 devices share rows, 2 share features: partial sums of the decoder over the rows of a device, gradients of a
    device's own features, vectors and scalars; for TopK each device's candidates besides."""
    rows, d, m, k = 128, 16, 64, 4
    largest = max(rows // 4 * d, d * m // 2)
    relu = traffic(dataclasses.replace(VARIANTS["relu"], resampling=None), rows, d, data=4, tensor=2)
    assert set(relu) == {"all-reduce"}
    assert max(relu["all-reduce"]) == largest
    assert sum(n > m for n in relu["all-reduce"]) <= 4  # ŷ, two gradients of matrices; nothing else of that size
    topk = traffic(VARIANTS["topk"], rows, d, data=4, tensor=2)
    assert set(topk) <= {"all-reduce", "all-gather"}
    assert max(topk["all-gather"]) <= rows // 4 * 2 * max(k, 8)  # candidates, of AuxK's 8 as well
    assert max(topk["all-reduce"]) == largest
