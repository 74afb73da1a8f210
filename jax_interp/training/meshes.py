"""Meshes of devices, with the axes `replicate`, `data`, `fsdp` and `tensor`.

    mesh = make_mesh(fsdp=4, tensor=2)
    mesh = mesh_of("replicate=2,fsdp=-1")

`replicate` and `data` hold copies of the weights, `fsdp` splits the weights and gathers them for use, `tensor` splits
features and heads. The rows of a batch are split over the first three. Over `replicate` only gradients are summed:
it is the axis for a slow network, between slices of TPUs or between hosts. `make_mesh` puts `replicate` on the slow
network first, then `data`, and `fsdp` and `tensor` only if there are more slices or hosts than copies.

A mesh may lack some of the axes. An axis that it lacks has size 1.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from jax_interp.core.errors import UserError

AXES = ("replicate", "data", "fsdp", "tensor")
ROWS = ("replicate", "data", "fsdp")  # the axes that split the rows of a batch
BATCH = PartitionSpec(ROWS)


def make_mesh(
    *,
    replicate: int = 1,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    explicit: bool = True,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """A mesh of `replicate * data * fsdp * tensor` devices.

    Args:
      replicate: groups of devices that each have all weights and their own rows, over the slow network. One of the four
        sizes may be -1: all remaining devices.
      data: devices along the axis that splits batches.
      fsdp: devices along the axis that splits batches and weights.
      tensor: devices along the axis that splits features and heads.
      explicit: whether shardings are part of array types (JAX's default). False: the compiler chooses shardings.
      devices: the devices to use. None: all. Devices that the mesh does not need stay unused.

    Returns:
      A mesh with the axes "replicate", "data", "fsdp" and "tensor".

    Raises:
      UserError: a size is 0 or negative, several sizes are -1, the mesh does not fit the devices, or a process has no
        device in the mesh.

    Example:
        mesh = make_mesh(data=-1, tensor=2)
    """
    given, devices = devices, jax.devices() if devices is None else list(devices)
    sizes = [replicate, data, fsdp, tensor]
    asked = ", ".join(f"{name}={size}" for name, size in zip(AXES, sizes) if name != "replicate" or size != 1)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {asked}: give positive sizes, at most one of them -1")
    rest = -1 in sizes
    if rest:
        sizes[sizes.index(-1)] = len(devices) // math.prod(size for size in sizes if size != -1)
    needed = math.prod(sizes)
    if needed > len(devices) or (rest and needed != len(devices)):
        more = (
            ""
            if jax.default_backend() != "cpu"
            else ("; XLA_FLAGS=--xla_force_host_platform_device_count=8 in the environment gives a CPU eight devices")
        )
        noun = "device" if len(devices) == 1 else "devices"
        raise UserError(f"mesh {asked} does not fit {len(devices)} {noun}{more}")
    without = {device.process_index for device in devices} - {device.process_index for device in devices[:needed]}
    if given is None and without:
        raise UserError(
            f"mesh {asked} takes {needed} of {len(devices)} devices, none of process {min(without)}: give a mesh over "
            "the devices of all processes (data=-1), or fewer processes"
        )
    return Mesh(arranged(sizes, devices[:needed]), AXES, axis_types=_types(explicit))


def arranged(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """Devices in the shape of a mesh: the first axes run over the slow network, the last ones inside its groups.

    A group is a slice of TPUs. Where devices have no slices, it is what one process owns. If the groups have different
    sizes, the devices keep their order.

    Args:
      sizes: the size of each axis, from the axis that communicates least to the one that communicates most.
      devices: as many devices as the mesh has.

    Returns:
      An array of the devices, of shape `sizes`.
    """
    kind = "slice_index" if len({getattr(device, "slice_index", 0) for device in devices}) > 1 else "process_index"
    groups: dict[int, int] = {}
    for device in devices:
        groups[getattr(device, kind)] = groups.get(getattr(device, kind), 0) + 1
    fast = kind == "process_index" and devices[0].platform == "tpu"  # the hosts of one slice share its network
    across, left = [], len(groups)
    for size in sizes:
        across.append(math.gcd(size, left))
        left //= across[-1]
    split = devices[0].device_kind in ("TPU v5 lite", "TPU v5e")  # as jax.make_mesh does
    if len(groups) == 1 or fast or left > 1 or len(set(groups.values())) > 1:
        return mesh_utils.create_device_mesh(tuple(sizes), devices, allow_split_physical_axes=split)
    return mesh_utils.create_hybrid_device_mesh(
        [size // over for size, over in zip(sizes, across)],
        across,
        devices,
        process_is_granule=kind == "process_index",
        allow_split_physical_axes=split,
    )


def mesh_of(text: str) -> Mesh:
    """The mesh that a text describes, with shardings that the compiler chooses (`explicit=False`).

    Args:
      text: sizes by axis, as in "data=2,fsdp=4". An axis that is left out has size 1. One size may be -1: all remaining
        devices.

    Raises:
      UserError: an axis is unknown or named twice, a size is not a number, or the mesh does not fit the devices.

    Example:
        mesh = mesh_of("replicate=2,fsdp=-1")
    """
    sizes = mesh_sizes(text)
    replicate, data, fsdp, tensor = (sizes.get(name, 1) for name in AXES)
    return make_mesh(replicate=replicate, data=data, fsdp=fsdp, tensor=tensor, explicit=False)


def mesh_sizes(text: str) -> dict[str, int]:
    """The sizes by axis that a text such as "data=2,fsdp=4" gives. It needs no devices.

    Raises:
      UserError: an axis is unknown or named twice, or a size is not a number.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, equals, size = (piece.strip() for piece in part.partition("="))
        if not equals or not size.removeprefix("-").isdecimal():
            raise UserError(f"mesh {text!r}: {part!r} is not AXIS=SIZE; an example is data=2,fsdp=2")
        if name not in AXES:
            near = difflib.get_close_matches(name, AXES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"mesh {text!r}: there is no axis {name!r}; the axes are {', '.join(AXES)}{hint}")
        if name in sizes:
            raise UserError(f"mesh {text!r} gives the size of {name} twice: give it once")
        sizes[name] = int(size)
    return sizes


def abstract_mesh(
    *, replicate: int = 1, data: int = 1, fsdp: int = 1, tensor: int = 1, explicit: bool = True
) -> AbstractMesh:
    """A mesh without devices. With `jax.eval_shape` it checks shapes and shardings of a large run on any machine."""
    return AbstractMesh((replicate, data, fsdp, tensor), AXES, axis_types=_types(explicit))


def _types(explicit: bool) -> tuple[AxisType, ...]:
    return (AxisType.Explicit if explicit else AxisType.Auto,) * len(AXES)


def row_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The axes of a mesh that split the rows of a batch."""
    return tuple(name for name in ROWS if name in mesh.shape)


def row_shards(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts that the rows of a batch are split into."""
    return math.prod(mesh.shape[name] for name in row_axes(mesh))


def present(spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """A spec without the axes of `AXES` that the mesh lacks.

    If the mesh has an axis that is not in `AXES`, its maker splits the weights in a way of their own. Then only
    `replicate` is left out: a rule that names `fsdp` or `tensor` does not fit the mesh, and must not pass in silence.
    """
    ours = set(mesh.axis_names) <= set(AXES)
    absent = set(AXES if ours else ("replicate",)) - set(mesh.axis_names)

    def of_entry(entry: Any) -> Any:
        names = entry if isinstance(entry, tuple) else (entry,)
        if not absent & set(names):
            return entry
        return tuple(name for name in names if name not in absent) or None

    return PartitionSpec(*(of_entry(entry) for entry in spec))
