"""Stored numbers on devices: the `place` of `Files`, for one device or a mesh.

    files = Files.at("sae", place=placing(mesh))
    W_enc = files.place("W_enc", tensors["encoder.weight"].T)

A view of memory-mapped numbers, transposed or not, is converted block by block into one buffer, which becomes the array
without a copy where the backend allows it. The blocks that were read are given back to the system. On a mesh each
device gets such a buffer for its own part only. Loading therefore takes about the size of the result in memory.
"""

from __future__ import annotations

import contextlib
import gc
import math
import mmap
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats.files import PlaceArray
from jax_interp.dictionaries.sharding import dictionary_rules
from jax_interp.training.sharding import matches

_BLOCK = 1 << 20  # bytes that are converted at a time: they stay in the cache of a core
_KEPT = 16  # blocks of a file that may be in memory at a time
_LARGE = 1 << 24  # bytes
_ALIGNED = 64  # bytes; JAX uses an aligned buffer of the host as the array, and copies any other


def placing(mesh: Mesh | None = None, *, widen: bool = False) -> PlaceArray:
    """The function that puts stored numbers on devices.

    Args:
      mesh: arrays are placed by the sharding rules of dictionaries. The compiler chooses the shardings of what is
        computed from them (axes are automatic). None: the default device.
      widen: convert floats of 16 bits to float32. Published libraries compute in float32, whatever the file has.

    Returns:
      `place(role, view)`. It raises UserError if a number is not finite, or a mesh axis does not divide an axis.
    """
    collected: list[bool] = []

    def place(role: str, view: np.ndarray) -> Array:
        view = np.asarray(view)
        if view.nbytes >= _LARGE and not collected:
            collected.append(True)
            gc.collect()  # JAX keeps the host buffers of arrays that were dropped until Python's collector runs
        dtype = _dtype(role, view.dtype, widen)
        try:
            if mesh is None:
                return jax.device_put(_filled(role, view, dtype))
            where = NamedSharding(automatic_axes(mesh), spec_of(role, view.shape, mesh))
            part = lambda index: _filled(role, view[index], dtype)
            return jax.make_array_from_callback(view.shape, where, part)
        finally:
            _give_back(view)

    return place


def automatic_axes(mesh: Mesh) -> Mesh:
    """The mesh with axes whose shardings the compiler chooses, so that readers may fold without naming shardings."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def spec_of(role: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The sharding of the array with this role. Raises UserError if a mesh axis does not divide an axis."""
    rule = next((spec for pattern, spec in dictionary_rules() if matches(pattern, role)), PartitionSpec())
    if len(rule) > len(shape):  # one threshold for all features
        return PartitionSpec()
    spec = PartitionSpec(*[None] * (len(shape) - len(rule)), *rule)
    for size, axis in zip(shape, spec):
        names = (axis,) if isinstance(axis, str) else tuple(axis or ())
        ways = math.prod(dict(mesh.shape).get(name, 1) for name in names)
        if size % ways:
            raise UserError(f"{role} has an axis of {size}, which {' x '.join(names)} = {ways} does not divide")
    return spec


def _dtype(role: str, stored: np.dtype, widen: bool) -> np.dtype:
    if stored in (np.float16, ml_dtypes.bfloat16):
        return np.dtype(np.float32) if widen else stored
    if not jnp.issubdtype(stored, jnp.number) and stored != np.bool_:
        raise UserError(f"{role} has dtype {stored}, which is not a number")
    return np.dtype(jax.dtypes.canonicalize_dtype(stored))  # float64 is float32 unless JAX is set to 64 bits


def _filled(role: str, view: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A C-ordered copy of `view` in an aligned buffer. It is never written again, so it may become a JAX array."""
    out = _buffer(view.shape, dtype)
    if not view.ndim or not view.size:
        out[...] = view
        _check_finite(role, out)
        return out
    # blocks along the axis that is outermost in the file, so that each page of the file is read once
    axis = int(np.argmax(np.abs(view.strides)))
    size = max(1, _BLOCK * view.shape[axis] // max(1, view.size * max(view.itemsize, dtype.itemsize)))
    for number, start in enumerate(range(0, view.shape[axis], size)):
        block = (slice(None),) * axis + (slice(start, start + size),)
        with np.errstate(over="ignore"):  # checked in the next line
            out[block] = view[block]
        _check_finite(role, out[block])
        if number % _KEPT == 0:
            _give_back(view)
    return out


def _buffer(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An aligned array. A large one gets pages of its own, large ones where the system has them: with pages of 4 KB,
    most of the time of loading would be the first touch of each page."""
    size = math.prod(shape) * dtype.itemsize
    if size >= _LARGE:
        pages = mmap.mmap(-1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                pages.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(pages, dtype).reshape(shape)
    raw = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    return raw[start : start + size].view(dtype).reshape(shape)


def _check_finite(role: str, values: np.ndarray) -> None:
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return
    finite = np.isfinite(values)
    if role.rpartition(".")[2].startswith("log_"):  # where -inf stands for 0
        finite |= values == -np.inf
    if not finite.all():
        raise UserError(f"{role} has numbers that are NaN or infinite: its file is damaged, or its training diverged")


def _give_back(view: Any) -> None:
    """Let the system drop the pages of a memory-mapped file that were read. They can be read again."""
    while view is not None and not isinstance(view, mmap.mmap):
        if isinstance(view, memoryview):
            view = view.obj
        else:
            view = getattr(view, "base", None)
    if view is not None and hasattr(mmap, "MADV_DONTNEED"):
        view.madvise(mmap.MADV_DONTNEED)
