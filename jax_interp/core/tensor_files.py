"""Tensors on disk: safetensors files, and pairs of a safetensors file and a JSON file that describes the tensors.

    write_tensors("parts.safetensors", {"V": V, "U": U}, {"config": text})      one file, with strings in its header
    file = read_tensors("parts.safetensors")                                    file.arrays, file.header
    write_described("runs/sae", "dictionary", arrays, {"format": 2, ...})       dictionary.safetensors, dictionary.json
    description, arrays = read_described("runs/sae", "dictionary", formats=(2,), what="dictionary")

Files are written atomically, by one rename. A file has a digest of its arrays and strings in its header. It is compared
when the arrays are read. Files of other programs and of earlier versions have none, and are read as they are.

Files that are read are not trusted. Their headers are checked (lengths, offsets, overlaps, names that stand twice), the
format has no pickles, and names of tensors are never used as paths. A file that is missing, truncated, altered or of
another format raises a `TensorFileError` that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_interp.core.atomic_write import make_directory, replacing
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import DIGEST, json_digest, parse_json, read_json, write_json
from jax_interp.core.locks import locked
from jax_interp.core.processes import on_host

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
_STORED = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "U16", "int16": "I16", "float16": "F16", "bfloat16": "BF16",
    "uint32": "U32", "int32": "I32", "float32": "F32", "uint64": "U64", "int64": "I64", "float64": "F64",
    "complex64": "C64",
}  # fmt: skip
DTYPES = frozenset(_STORED)
"""The dtypes that can be written. They are read back bit for bit."""

_PIECE = 1 << 24  # bytes; threads take the digests of the pieces of an array


class TensorFileError(UserError):
    """A tensor file that is missing or damaged, or arrays that cannot be written."""


@dataclass(frozen=True)
class TensorFile:
    """The content of one safetensors file."""

    arrays: dict[str, np.ndarray]
    header: dict[str, str]
    """The strings that were stored with the arrays."""
    digest: str | None
    """The digest of both; None in files of other programs and of earlier versions."""


def write_tensors(
    path: Path | str, arrays: Mapping[str, jax.Array | np.ndarray], header: Mapping[str, str] | None = None
) -> Path:
    """Write arrays and their digest to one safetensors file, atomically. Missing directories are created.

    Args:
      path: the file to create or replace.
      arrays: the arrays by name. Any shape; a dtype in `DTYPES`.
      header: strings to store with them.

    Returns:
      `path`.

    Raises:
      TensorFileError: an array has another dtype.
      WriteError: the file cannot be written.
    """
    _write(Path(path), arrays, dict(header or {}))
    return Path(path)


def _write(path: Path, arrays: Mapping[str, jax.Array | np.ndarray], strings: dict[str, str]) -> str:
    """The work of `write_tensors`. Returns the digest, which a process that writes no file knows too."""
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES:
            raise TensorFileError(
                f"{name!r} has dtype {array.dtype}, which {path.name} cannot hold; convert it to one of "
                f"{', '.join(sorted(DTYPES))}"
            )
    host = {name: np.asarray(on_host(array), order="C") for name, array in arrays.items()}
    digest = _digest(strings, host, host.__getitem__)
    about: dict[str, Any] = {"__metadata__": strings | {DIGEST: digest}}
    # as safetensors writes: wide dtypes first, so that every array is aligned
    host, end = dict(sorted(host.items(), key=lambda item: (-item[1].itemsize, item[0]))), 0
    for name, array in host.items():
        offsets, end = [end, end + array.nbytes], end + array.nbytes
        about[name] = {"dtype": _STORED[str(array.dtype)], "shape": list(array.shape), "data_offsets": offsets}
    text = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    make_directory(path.parent)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in host.values():
            file.write(_bytes(array))
    return digest


@contextlib.contextmanager
def open_tensors(path: Path | str) -> Iterator[Any]:
    """Open a safetensors file within the block, to read parts of large tensors. Yields the `safe_open` handle.

    Nothing is compared with the digest; `verify_tensors` does it.

    Raises:
      TensorFileError: the file is missing, or is not a complete safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise TensorFileError(f"there is no file {str(path)!r}")
    try:
        handle = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise TensorFileError(
            f"{path} is not a whole safetensors file: it is damaged, cut short, or of another kind ({error})"
        ) from error
    with handle:
        yield handle


def read_tensors(path: Path | str) -> TensorFile:
    """Read all arrays of a safetensors file and the strings in its header, and compare them with its digest.

    Args:
      path: a file that `write_tensors` or another program wrote.

    Returns:
      The arrays, bit for bit, copied into memory, and the header without the digest.

    Raises:
      TensorFileError: the file is missing, is not a complete safetensors file, was changed since it was written, or has
        a dtype that numpy does not know.
    """
    with _opened(path) as (handle, header):
        arrays = {name: _read(path, handle, name) for name in handle.keys()}  # noqa: SIM118  (not a mapping)
        digest = _compared(path, header, arrays, arrays.__getitem__)
        return TensorFile(arrays, header, digest)


def read_header(path: Path | str) -> dict[str, str]:
    """The strings in the header of a safetensors file, without reading its arrays. Raises TensorFileError."""
    with _opened(path) as (_, header):
        header.pop(DIGEST, None)
        return header


def stored_digest(path: Path | str) -> str | None:
    """The digest in the header of a safetensors file; None if it has none. Raises TensorFileError."""
    with _opened(path) as (_, header):
        return header.get(DIGEST)


def verify_tensors(path: Path | str) -> None:
    """Compare a safetensors file with its digest, one array at a time. A file without a digest is not read.

    Raises:
      TensorFileError: as `read_tensors`.
    """
    with _opened(path) as (handle, header):
        if DIGEST in header:
            _compared(path, header, handle.keys(), lambda name: _read(path, handle, name))


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[tuple[Any, dict[str, str]]]:
    """The handle of a file and the strings in its header, which is strict JSON."""
    with open_tensors(path) as handle:
        _header(path)
        yield handle, dict(handle.metadata() or {})


def data_starts(path: Path | str) -> dict[str, int]:
    """For each array of a safetensors file, the byte of the file at which its values begin.

    Call this within `open_tensors`, which checks offsets and overlaps.

    Raises:
      TensorFileError: the file cannot be read.
    """
    header, end = _header(path)
    return {name: end + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"}


def _header(path: Path | str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, which is strict JSON, and its end."""
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            text = file.read(length)
    except OSError as error:
        raise TensorFileError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    return parse_json(text, f"the header of {path}"), 8 + length


def _read(path: Path | str, handle: Any, name: str) -> np.ndarray:
    try:
        return handle.get_tensor(name)
    except (AttributeError, TypeError, KeyError) as error:
        dtype = handle.get_slice(name).get_dtype()
        raise TensorFileError(f"{path}: {name!r} has dtype {dtype}, which cannot be read here") from error
    except (ValueError, OverflowError, MemoryError) as error:
        raise TensorFileError(f"{path}: {name!r} cannot be read: {error}") from error


def _compared(
    path: Path | str, header: dict[str, str], names: Iterable[str], array: Callable[[str], np.ndarray]
) -> str | None:
    """Take the digest out of a header. Raise unless it is the digest of the other strings and of the arrays."""
    digest = header.pop(DIGEST, None)
    if digest is not None and digest != _digest(header, names, array):
        raise TensorFileError(f"{path} is damaged: its content was changed since it was written (its digest differs)")
    return digest


def _digest(header: Mapping[str, str], names: Iterable[str], array: Callable[[str], np.ndarray]) -> str:
    """The SHA-256 over strings and arrays: of the digests of pieces, so that several threads can compute it."""
    about: dict[str, Any] = {"header": dict(header)}
    with ThreadPoolExecutor() as threads:
        for name in sorted(names):
            value = array(name)
            data = _bytes(value)
            pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
            digests = list((threads.map if len(pieces) > 1 else map)(_sha256, pieces))
            about[f"tensor {name}"] = [str(value.dtype), list(value.shape), digests]
    return json_digest(about)


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def write_described(
    directory: Path | str, stem: str, arrays: Mapping[str, jax.Array | np.ndarray], description: Mapping[str, Any]
) -> Path:
    """Write `<stem>.safetensors` and `<stem>.json` in one directory. Existing files are replaced.

    The JSON file is written last. It holds the digest of the tensors under "tensors", and a digest of its own. If a
    crash replaces only one of the two files, `read_described` detects it.

    Args:
      directory: created if it is missing.
      stem: the name of both files.
      arrays: as in `write_tensors`.
      description: JSON values. `read_described` expects an entry "format".

    Returns:
      The directory.

    Raises:
      UserError: as in `write_tensors`, or another process writes the pair.
    """
    directory = Path(directory)
    with locked(directory / f".{stem}.lock", f"{directory / stem}.safetensors"):
        digest = _write(directory / f"{stem}.safetensors", arrays, {})
        write_json(directory / f"{stem}.json", {**description, "tensors": digest})
    return directory


def read_described(
    directory: Path | str, stem: str, *, formats: Collection[int], what: str, dtypes: Collection[str] = DTYPES
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a pair of files that `write_described` wrote.

    Args:
      directory: where the two files are.
      stem: the name of both files.
      formats: the values of "format" that the caller supports.
      what: the word for the content in messages ("dictionary").
      dtypes: the dtypes that the arrays may have.

    Returns:
      The description, and the arrays by name.

    Raises:
      UserError: a file is missing or was changed, its format is not supported, the tensors are those of another
        description, or a dtype is not allowed.
    """
    described, tensors = (Path(directory) / f"{stem}.{suffix}" for suffix in ("json", "safetensors"))
    for path in (described, tensors):
        if not path.is_file():
            raise TensorFileError(
                f"no {what} in {directory}: {path.name} is missing; a {what} is {described.name} and {tensors.name}"
            )
    description = read_json(described)
    found = description.get("format")
    if type(found) is not int or found not in formats:
        raise TensorFileError(f"{described} has format {found!r}; this version reads {', '.join(map(str, formats))}")
    file = read_tensors(tensors)
    if "sha256" in description:  # of an earlier version
        belongs = description.pop("sha256") == _file_sha256(tensors)
    else:
        belongs = file.digest is not None and description.pop("tensors", None) == file.digest
    if not belongs:
        raise TensorFileError(
            f"{tensors} is not the file that {described.name} describes: it was altered, or a save was interrupted "
            "between the two; save it again"
        )
    for name, array in file.arrays.items():
        if str(array.dtype) not in dtypes:
            raise TensorFileError(
                f"{tensors}: {name!r} has dtype {array.dtype}; a {what} has {', '.join(sorted(dtypes))}"
            )
    return description, file.arrays


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
