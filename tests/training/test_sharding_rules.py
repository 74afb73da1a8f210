"""Sharding rules: which rule decides which leaf, and that nothing is left undecided in silence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_interp.core.errors import UserError
from jax_interp.training.sharding import (
    abstract,
    abstract_mesh,
    make_mesh,
    matches,
    shard,
    shard_batch,
    shardings,
    specs,
)

P = jax.sharding.PartitionSpec


@pytest.mark.parametrize(
    ("pattern", "address", "answer"),
    [
        ("weight", "blocks.0.attn.q.weight", True),
        ("q.weight", "blocks.0.attn.q.weight", True),
        ("*.weight", "blocks.0.attn.q.weight", True),
        ("attn.*.weight", "blocks.0.attn.q.weight", True),
        ("attn.[qk].weight", "blocks.0.attn.q.weight", True),
        ("attn.[qk].weight", "blocks.0.attn.v.weight", False),
        ("blocks.**.weight", "opt.0.mu.blocks.0.attn.q.weight", True),
        ("blocks.*.weight", "blocks.0.attn.q.weight", False),
        ("eight", "blocks.0.attn.q.weight", False),  # whole parts only
        ("attn.weight", "blocks.0.attn.q.weight", False),
        ("**", "anything.at.all", True),
        ("**", "", True),
        ("a.b.c", "b.c", False),
        ("opt.**", "opt.0.count", True),
        ("opt.**", "params.w", False),
    ],
)
def test_matching(pattern, address, answer):
    assert matches(pattern, address) is answer


def state(width=16):
    blocks = {"block": {"attn": {"q": {"weight": jnp.ones((3, 4, width, 8))}}, "ln": {"scale": jnp.ones((3, width))}}}
    params = {"embed": {"weight": jnp.ones((24, width))}, "blocks": [blocks]}
    return {"params": params, "opt": optax.adam(1e-3).init(params), "key": jax.random.key(0)}


RULES = (
    ("embed.weight", P("tensor", "fsdp")),
    ("attn.q.weight", P("tensor", "fsdp", None)),
    ("scale", P()),
    ("**", P()),
)


def test_one_rule_serves_parameters_moments_and_stacks():
    found = specs(state(), RULES)
    assert found["params.blocks.0.block.attn.q.weight"] == P(None, "tensor", "fsdp", None)  # the layer axis is free
    assert found["opt.0.mu.blocks.0.block.attn.q.weight"] == P(None, "tensor", "fsdp", None)
    assert found["opt.0.nu.embed.weight"] == P("tensor", "fsdp")
    assert found["opt.0.count"] == P() == found["key"]


@pytest.mark.parametrize("explicit", [True, False])
def test_shard_places_and_keeps_the_values(explicit):
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    placed = shard(state(), RULES, mesh)
    weight = placed["params"]["embed"]["weight"]
    assert weight.sharding.shard_shape(weight.shape) == (12, 8)
    np.testing.assert_array_equal(weight, np.ones((24, 16)))
    assert jax.typeof(weight).sharding.spec == (P("tensor", "fsdp") if explicit else P(None, None))


def test_a_large_mesh_without_devices():
    big = jax.eval_shape(lambda: state(width=4096))
    mesh = abstract_mesh(data=16, fsdp=16, tensor=4)
    leaf = abstract(big, RULES, mesh)["params"]["blocks"][0]["block"]["attn"]["q"]["weight"]
    assert leaf.sharding.shard_shape(leaf.shape) == (3, 1, 256, 8)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (RULES[:2], "no sharding rule for .*scale.*replicates all other leaves"),
        ((("embed.wieght", P()), *RULES), "match no leaf: 'embed.wieght'"),
        ((*RULES, ("late", P())), "match no leaf: 'late'"),
        ((("count", P("data")), *RULES), r"'count': .* has 1 axes, opt\.0\.count has 0"),
        (
            (("scale", P("model")), RULES[0], RULES[1], RULES[3]),
            "names mesh axis 'model'; the mesh has replicate, data, fsdp, tensor",
        ),
        (
            (("scale", P("data", None)), RULES[0], RULES[1], RULES[3]),
            "has an axis of 3, which data = 8 does not divide",
        ),
    ],
)
def test_mistakes_are_errors(rules, message):
    with pytest.raises(UserError, match=message):
        shardings(state(), rules, make_mesh(data=8))


def test_rows_that_cannot_be_split():
    with pytest.raises(UserError, match=r"a batch of 6 cannot be split.*a multiple of 4"):
        shard_batch(np.zeros((6, 2)), make_mesh(data=2, fsdp=2))


def test_batches():
    batch = shard_batch({"tokens": np.arange(32).reshape(8, 4), "n": 3}, make_mesh(data=2, fsdp=4))
    assert batch["tokens"].sharding.shard_shape((8, 4)) == (1, 4)
    assert batch["n"].sharding.is_fully_replicated


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("names", [("data", "fsdp", "tensor"), ("data",), ("fsdp", "tensor"), ("replicate", "fsdp")])
def test_an_axis_that_a_mesh_lacks_has_size_1(names, explicit):
    """A mesh that was made by hand is the mesh of `make_mesh` with 1 in place of the axes that it lacks."""
    kind = (jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto,) * len(names)
    mesh = jax.make_mesh((2,) * len(names), names, axis_types=kind, devices=jax.devices()[: 2 ** len(names)])
    full = make_mesh(**dict.fromkeys(names, 2))
    parts = lambda mesh: [
        {shard.device.id: shard.index for shard in leaf.addressable_shards}
        for leaf in jax.tree.leaves((shard(state(), (*RULES[:1], ("scale", P()), ("**", P())), mesh),
                                     shard_batch(np.zeros((8, 3)), mesh)))
    ]  # fmt: skip
    assert parts(mesh) == parts(full)


def test_on_a_mesh_of_foreign_axes_a_rule_that_does_not_fit_is_an_error():
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    with pytest.raises(UserError, match="names mesh axis 'tensor'; the mesh has data, model"):
        shardings(state(), RULES, mesh)
    assert shard_batch(np.zeros((8, 3)), mesh).sharding.shard_shape((8, 3)) == (4, 3)
