"""Large arrays on disk, each a `.npy` file that is written atomically and memory-mapped when it is read.

A manifest keeps what the file should hold: the shape, the dtype, and the SHA-256 of the array's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jax_interp.core.atomic_write import replacing
from jax_interp.core.errors import UserError


class ArrayFileError(UserError):
    """An array file that is missing, damaged, or not the one that its manifest describes."""


def write_arrays(directory: Path | str, arrays: Mapping[str, np.ndarray], *, every_process: bool = False) -> None:
    """Write each array as `<name>.npy`: first all of them under temporary names, so that an error replaces nothing.

    Args:
      directory: the directory of the files.
      arrays: the arrays by name.
      every_process: as in `replacing`.

    Raises:
      WriteError: a file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for name, array in arrays.items():
            path = Path(directory) / f"{name}.npy"
            with open(stack.enter_context(replacing(path, every_process=every_process)), "wb") as file:
                np.save(file, array, allow_pickle=False)


def open_array(path: Path | str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory-map the array of a file. Its content is not compared with a digest; `check_array` does it.

    Raises:
      ArrayFileError: the file is missing, is not a whole `.npy` file, or holds another shape or dtype.
    """
    if not Path(path).is_file():
        raise ArrayFileError(f"there is no file {str(path)!r}; write it again")
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy and mmap have no common type for files that they cannot read
        raise ArrayFileError(f"cannot read {str(path)!r}: {error}; write it again") from error
    if array.shape != shape or str(array.dtype) != dtype:
        raise ArrayFileError(
            f"{path} holds {list(array.shape)} {array.dtype}, its manifest says {list(shape)} {dtype}; write it again"
        )
    return array


def map_npy(path: Path | str) -> np.ndarray:
    """Memory-map a `.npy` file of another program. Raises ArrayFileError if it is missing, damaged, or has pickles."""
    if not Path(path).is_file():
        raise ArrayFileError(f"there is no file {str(path)!r}")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy has no common type for files that it cannot read
        raise ArrayFileError(f"{path} is not a whole .npy file without pickles: {error}") from error


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file of another program, by name. Raises ArrayFileError for a damaged one, or pickles."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # errors of zip files too
        raise ArrayFileError(f"{path} is not a whole .npz file of arrays without pickles: {error}") from error


def check_array(path: Path | str, array: np.ndarray, sha256: str) -> None:
    """Raise ArrayFileError unless `sha256` is the SHA-256 of the array of a file."""
    if array_sha256(array) != sha256:
        raise ArrayFileError(f"{path} was changed since it was written (SHA-256); write it again")


def array_sha256(array: np.ndarray) -> str:
    """The SHA-256 of the bytes of an array, in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hexdigest()
