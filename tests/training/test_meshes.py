"""Meshes: what a text describes, and which axes run over the slow network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from jax.experimental import mesh_utils

from jax_interp.core.errors import UserError
from jax_interp.training import meshes
from jax_interp.training.meshes import abstract_mesh, arranged, make_mesh, mesh_of


@dataclasses.dataclass(frozen=True)
class Device:
    """What `mesh_utils` asks of a device."""

    id: int
    process_index: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "a kind that mesh_utils has no order for"
    coords: tuple[int, int, int] = (0, 0, 0)
    core_on_chip: int = 0


def slices(number: int, each: int) -> list[Device]:
    """`each` devices in each of `number` slices, numbered in turn, so that neighbours are never in one slice."""
    return [Device(i, i % number, i % number) for i in range(number * each)]


def in_one(group: str, devices: np.ndarray, axis: int) -> bool:
    """Whether the devices along an axis are always in one group."""
    lines = np.moveaxis(devices, axis, -1).reshape(-1, devices.shape[axis])
    return all(len({getattr(device, group) for device in line}) == 1 for line in lines)


@pytest.mark.parametrize(
    ("sizes", "number", "across"),
    [
        ((2, 1, 2, 2), 2, {0}),
        ((2, 2, 2, 1), 4, {0, 1}),
        ((1, 4, 2, 1), 4, {1}),
        ((4, 1, 2, 1), 2, {0}),  # two copies in each slice
        ((1, 1, 8, 1), 2, {2}),  # there are no copies: the weights are split over the slow network
        ((1, 1, 4, 2), 2, {2}),
    ],
)
def test_over_the_slow_network_run_the_first_axes_only(sizes, number, across):
    devices = arranged(sizes, slices(number, int(np.prod(sizes)) // number))
    assert devices.shape == sizes
    assert len(set(devices.flat)) == devices.size
    assert {axis for axis in range(4) if not in_one("slice_index", devices, axis)} == across


def test_devices_without_slices_are_grouped_by_process():
    devices = [Device(i, process_index=i % 2, slice_index=0) for i in range(8)]
    assert in_one("process_index", arranged((2, 1, 2, 2), devices), 2)
    assert in_one("process_index", arranged((2, 1, 2, 2), devices), 3)


def test_the_hosts_of_one_slice_share_its_network():
    corners = [(x, y, z) for x in range(2) for y in range(2) for z in range(2)]
    for axis in range(3):
        devices = [Device(i, corner[axis], 0, platform="tpu", coords=corner) for i, corner in enumerate(corners)]
        expected = mesh_utils.create_device_mesh((2, 1, 2, 2), devices)
        np.testing.assert_array_equal(arranged((2, 1, 2, 2), devices), expected)


def test_groups_of_different_sizes_keep_the_order():
    devices = [Device(i, process_index=min(i, 1), slice_index=0) for i in range(4)]
    assert [device.id for device in arranged((2, 1, 2, 1), devices).flat] == list(range(4))


def test_a_mesh_without_a_device_of_some_process_is_refused(monkeypatch):
    monkeypatch.setattr(meshes.jax, "devices", lambda: slices(2, 4))
    with pytest.raises(UserError, match="takes 1 of 8 devices, none of process 1"):
        make_mesh()


def test_without_a_plan_for_it_replicate_is_1():
    assert abstract_mesh(data=2).shape == make_mesh(data=2).shape == {"replicate": 1, "data": 2, "fsdp": 1, "tensor": 1}
    assert mesh_of("replicate=2,fsdp=-1").shape == {"replicate": 2, "data": 1, "fsdp": 4, "tensor": 1}
    assert abstract_mesh(replicate=4, fsdp=64).shape["replicate"] == 4


def test_meshes():
    assert make_mesh(fsdp=-1).shape == {"replicate": 1, "data": 1, "fsdp": 8, "tensor": 1}
    assert make_mesh(data=2).devices.size == 2
    sizes: tuple[dict[str, Any], ...] = ({"data": 3, "fsdp": -1}, {"data": 16}, {"data": -1, "fsdp": -1}, {"tensor": 0})
    for wrong in sizes:
        with pytest.raises(UserError, match="mesh"):
            make_mesh(**wrong)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=16", "does not fit 8 devices"),
        ("dta=2", "no axis 'dta'.*did you mean data"),
        ("data=2,data=4", "the size of data twice"),
        ("data", "not AXIS=SIZE"),
        ("data=two", "not AXIS=SIZE"),
        ("data=0", "positive sizes"),
    ],
)
def test_a_mesh_as_text_that_cannot_be(text, message):
    with pytest.raises(UserError, match=message):
        mesh_of(text)


def test_a_mesh_as_text():
    assert mesh_of("data=-1, tensor=2").shape == {"replicate": 1, "data": 4, "fsdp": 1, "tensor": 2}
