"""Collectives that are known before: what a product or a sum over a split axis must communicate."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jax_interp.core.errors import UserError
from jax_interp.training import collectives as module
from jax_interp.training.collectives import Collective, collectives
from jax_interp.training.meshes import make_mesh

SIZES: dict[str, Any] = {"replicate": 2, "fsdp": 2, "tensor": 2}
KINDS = {
    "sum": (lambda x, axes: jax.lax.psum(x, axes), "all-reduce", P(), 1),
    "gather": (lambda x, axes: jax.lax.all_gather(x, axes, tiled=True), "all-gather", P(), 1),
    "permute": (lambda x, axes: jax.lax.ppermute(x, axes[0], [(0, 1), (1, 0)]), "collective-permute", None, None),
    "transpose": (lambda x, axes: jax.lax.all_to_all(x, axes[0], 1, 1, tiled=True), "all-to-all", None, None),
}


def of(f, *shapes, mesh):
    return collectives(jax.jit(f).lower(*shapes).compile(), mesh)


@pytest.mark.parametrize("axes", [("replicate",), ("fsdp",), ("tensor",), ("replicate", "tensor"), ("fsdp", "tensor")])
@pytest.mark.parametrize("kind", KINDS)
def test_an_operation_over_named_axes_is_found_with_its_bytes(kind, axes):
    function, name, out, _ = KINDS[kind]
    if out is None:
        axes = axes[-1:]
    mesh, ways = make_mesh(**SIZES, explicit=False), 2 ** len(axes)
    run = jax.shard_map(
        lambda x: function(x, axes), mesh=mesh, in_specs=P(axes), out_specs=P(axes) if out is None else out,
        check_vma=False,
    )  # fmt: skip
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, P(axes)))
    whole, part = 16 * 32 * 4, 16 * 32 * 4 // ways
    size = {"sum": part, "gather": whole}.get(kind, part)
    (row,) = of(run, x, mesh=mesh)
    assert (row.kind, row.axes, row.count, row.bytes, row.ways) == (name, axes, 1, size, ways)


def test_a_collective_in_a_loop_counts_for_every_run():
    mesh = make_mesh(tensor=8, explicit=False)

    def run(x, W):
        def layer(x, _):
            def inner(x, _):
                return jnp.tanh(jax.lax.psum(x @ W, "tensor")), None

            return jax.lax.scan(inner, x, None, length=3)[0], None

        return jax.lax.scan(layer, x, None, length=5)[0]

    run = jax.shard_map(run, mesh=mesh, in_specs=(P(), P()), out_specs=P(), check_vma=False)
    x, W = jax.ShapeDtypeStruct((4, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32)
    assert of(run, x, W, mesh=mesh) == [Collective("all-reduce", ("tensor",), 15, 15 * 4 * 16 * 4, 4 * 16 * 4, 8)]


@pytest.mark.parametrize("axis", ["replicate", "data", "fsdp"])
def test_the_gradient_of_copies_is_summed_once(axis):
    """By the definition of data parallelism: rows are split, the gradient of a weight is summed over the devices."""
    sizes: dict[str, Any] = {axis: 4}
    mesh = make_mesh(**sizes, explicit=False)
    rows = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=NamedSharding(mesh, P(axis)))
    W = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=NamedSharding(mesh, P()))
    gradient = jax.grad(lambda W, x: jnp.sum((x @ W) ** 2))
    row = {(row.kind, row.axes): row for row in of(gradient, W, rows, mesh=mesh)}
    assert row.keys() == {("all-reduce", (axis,))}
    found = row["all-reduce", (axis,)]
    assert (found.bytes, found.sent) == (16 * 8 * 4, 2 * 3 / 4 * 16 * 8 * 4)


def test_one_device_communicates_nothing():
    x = jax.ShapeDtypeStruct((4, 16), jnp.float32)
    assert of(lambda x: x @ x.T, x, mesh=make_mesh()) == []


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_all_notations_of_groups_are_read(text, groups):
    np.testing.assert_array_equal(module._groups(f", channel_id=1, {text}, use_global_device_ids=true", 4), groups)


def test_a_notation_that_is_not_known_is_an_error_and_not_a_wrong_number():
    with pytest.raises(UserError, match="cannot read which devices"):
        module._groups(", replica_groups=somehow", 4)


def test_asynchronous_collectives_are_counted_once():
    line = "  %g = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}"
    assert [sizes for _, sizes, _ in module._operations([line, line.replace("-start", "-done")], 8)] == [[8 * 8 * 4]]
    line = "  %s = bf16[2,8]{1,0} reduce-scatter(%x), replica_groups=[2,4]<=[8], dimensions={0}, to_apply=%add"
    assert [sizes for _, sizes, _ in module._operations([line], 8)] == [[8 * 8 * 2]]
