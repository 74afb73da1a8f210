"""The arrays of a checkpoint whose hosts do not share a disk. Process 0 writes them whole, and reads them for all.

    whole/00000.bin, whole/00001.bin, ...     the bytes of each array, in the order of the sorted names

Arrays are gathered, written, read and passed on one after the other, so a host needs memory for one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array

from jax_interp.core.decisions import of_first
from jax_interp.core.errors import UserError
from jax_interp.core.processes import arrays_from_first_process, is_first_process, on_host
from jax_interp.training.arrays import UnreadableArrays, read_arrays
from jax_interp.training.sharding import put


class _Unreadable(UserError):
    """What process 0 tells the others if it cannot read an array."""


def write_whole(path: Path, arrays: Mapping[str, Array]) -> None:
    """Gather arrays and write them to the new directory `path`. Every process calls this, and process 0 writes.

    Raises:
      OSError: the operating system refused a write.
    """
    if is_first_process():
        path.mkdir()
    for number, name in enumerate(sorted(arrays)):
        whole = on_host(arrays[name])
        if is_first_process():
            np.ascontiguousarray(whole).reshape(-1).view(np.uint8).tofile(_file(path, number))


def read_whole(path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Read arrays that `write_whole` wrote, from a disk that every process sees.

    Raises:
      UnreadableArrays: a file is missing or has another size.
    """
    read = _reader(path, wanted)
    return {name: put(read(name), x.sharding) for name, x in sorted(wanted.items())}


def pass_on(step: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Array]:
    """Read the arrays of a checkpoint in process 0, and pass them on to the others. Every process calls this.

    Args:
      step: the directory of the step.
      wanted: shapes, dtypes and shardings by name.

    Raises:
      UnreadableArrays: process 0 cannot read them.
    """
    host: dict[str, np.ndarray] = {}
    readers: list[Callable[[str], np.ndarray]] = []

    def read(name: str) -> None:
        if not readers:
            readers.append(_reader(step / "whole", wanted) if (step / "whole").is_dir() else _of_orbax(step, wanted))
        try:
            host[name] = readers[0](name)
        except UnreadableArrays as error:
            raise _Unreadable(str(error)) from error

    out = {}
    for name, x in sorted(wanted.items()):
        try:
            of_first(lambda name=name: read(name), _Unreadable)
        except _Unreadable as error:
            raise UnreadableArrays(str(error)) from error
        kinds = {name: (x.shape, str(x.dtype))}
        out[name] = put(arrays_from_first_process(host, kinds)[name], x.sharding)
        host.clear()
    return out


def _reader(path: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Callable[[str], np.ndarray]:
    numbers = {name: number for number, name in enumerate(sorted(wanted))}

    def read(name: str) -> np.ndarray:
        file, x = _file(path, numbers[name]), wanted[name]
        try:
            found = np.fromfile(file, np.uint8)
        except OSError as error:
            raise UnreadableArrays(f"{file.name}: {error.strerror}") from error
        if found.size != x.size * np.dtype(x.dtype).itemsize:
            raise UnreadableArrays(f"{file.name} has {found.size:,} bytes, which is not the size of {name}")
        return found.view(x.dtype).reshape(x.shape)

    return read


def _of_orbax(step: Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> Callable[[str], np.ndarray]:
    """Arrays that orbax wrote, read by this process alone."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    local = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in wanted.items()}
    arrays = read_arrays(step / "arrays", local, alone=True)
    return lambda name: np.asarray(arrays.pop(name))


def _file(path: Path, number: int) -> Path:
    return path / f"{number:05d}.bin"
