"""Copies of stored tensors: the values of a plain copy, in any layout and dtype, and no value that is not finite."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import LLAMA_LIKE, peaky

from jax_interp.models import load, save
from jax_interp.models.hf import fill
from jax_interp.models.hf.host_copies import copy_checked, empty_aligned
from jax_interp.training.sharding import make_mesh

BIG = np.random.default_rng(0).standard_normal((1100, 1031)).astype(np.float32)  # larger than one piece


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, np.float64])
@pytest.mark.parametrize(
    "source",
    [
        BIG,
        BIG.T,
        BIG[:, 3:700],
        BIG[5:900].T,
        BIG[:3].T,
        BIG[0],
        BIG[:60, :64].reshape(4, 15, 64),
        BIG[:0],
        BIG[:, :1].T,
    ],
    ids=["plain", "transposed", "columns", "rows transposed", "narrow", "vector", "experts", "empty", "one"],
)
def test_a_copy_is_a_cast(source, dtype):
    out = empty_aligned(source.shape, dtype)
    assert out.ctypes.data % 64 == 0 or not out.size
    assert copy_checked(source, out)
    np.testing.assert_array_equal(out, source.astype(dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (1099, 1030), (517, 64)])
def test_a_value_that_is_not_finite_is_found(place, value, dtype):
    source = BIG.copy()
    source[place] = value
    for view in (source, source.T):
        assert not copy_checked(view, empty_aligned(view.shape, dtype))


def test_a_value_that_the_dtype_cannot_hold_is_found():
    assert not copy_checked(np.full((3, 3), 1e5, np.float32), empty_aligned((3, 3), np.float16))


def test_parameters_are_the_memory_that_was_read_into(tmp_path, monkeypatch):
    save(peaky(LLAMA_LIKE), tmp_path)
    memory = []
    monkeypatch.setattr(fill, "empty_aligned", lambda *a: memory.append(empty_aligned(*a)) or memory[-1])
    model, _ = load(tmp_path)
    for leaf, read in zip(jax.tree.leaves(model), memory, strict=True):
        assert leaf.unsafe_buffer_pointer() == read.ctypes.data


def test_on_a_mesh_only_the_parts_of_its_devices_are_read(tmp_path, monkeypatch):
    save(peaky(LLAMA_LIKE), tmp_path)
    read = []
    monkeypatch.setattr(
        fill, "copy_checked", lambda source, out: read.append(source.shape) or copy_checked(source, out)
    )
    model, _ = load(tmp_path, mesh=make_mesh(fsdp=4, tensor=2))
    shards = {shard.data.shape for leaf in jax.tree.leaves(model) for shard in leaf.addressable_shards}
    assert set(read) <= shards | {shape[1:] for shape in shards}
