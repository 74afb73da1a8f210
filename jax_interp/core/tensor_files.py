"""Tensors on disk: safetensors files, and pairs of a safetensors file and a JSON file that describes the tensors.

    write_tensors("parts.safetensors", {"V": V, "U": U}, {"config": text})      one file, with strings in its header
    file = read_tensors("parts.safetensors")                                    file.arrays, file.header
    write_described("runs/sae", "dictionary", arrays, {"format": 2, ...})       dictionary.safetensors, dictionary.json
    description, arrays = read_described("runs/sae", "dictionary", formats=(2,), what="dictionary")

Files are written atomically, by one rename. Files that are read are not trusted: `safetensors` checks the headers
(lengths, offsets, overlaps), the format has no pickles, and names of tensors are never used as paths. A file that is
missing, truncated, altered or of another format raises a `TensorFileError` that names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_interp.core.atomic_write import atomic_write, replacing
from jax_interp.core.errors import UserError

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})
DTYPES = FLOATS | {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "complex64"}
"""The dtypes that can be written. They are read back bit for bit."""


class TensorFileError(UserError):
    """A tensor file that is missing or damaged, or that cannot be written."""


@dataclass(frozen=True)
class TensorFile:
    """The content of one safetensors file."""

    arrays: dict[str, np.ndarray]
    header: dict[str, str]
    """The strings that were stored with the arrays."""


def write_tensors(
    path: Path | str, arrays: Mapping[str, jax.Array | np.ndarray], header: Mapping[str, str] | None = None
) -> Path:
    """Write arrays to one safetensors file, atomically. Missing directories are created.

    Args:
      path: the file to create or replace.
      arrays: the arrays by name. Any shape; a dtype in `DTYPES`.
      header: strings to store with them.

    Returns:
      `path`.

    Raises:
      TensorFileError: an array has another dtype, or the file cannot be written.
    """
    from safetensors import SafetensorError, numpy

    path = Path(path)
    for name, array in arrays.items():
        if str(array.dtype) not in DTYPES:
            raise TensorFileError(
                f"{name!r} has dtype {array.dtype}, which {path.name} cannot hold; convert it to one of "
                f"{', '.join(sorted(DTYPES))}"
            )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            # order="C": the writer stores the memory of an array without looking at its strides
            contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
            temporary.touch()
            mode = temporary.stat().st_mode  # follows the umask; safetensors makes the file readable by its owner only
            numpy.save_file(contiguous, temporary, metadata=None if header is None else dict(header))
            temporary.chmod(mode)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise TensorFileError(f"cannot write {str(path)!r}: {why}; give another place") from error
    return path


@contextlib.contextmanager
def open_tensors(path: Path | str) -> Iterator[Any]:
    """Open a safetensors file within the block, to read parts of large tensors. Yields the `safe_open` handle.

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
    """Read all arrays of a safetensors file, and the strings in its header.

    Args:
      path: a file that `write_tensors` or another program wrote.

    Returns:
      The arrays, bit for bit, copied into memory, and the header.

    Raises:
      TensorFileError: the file is missing, is not a complete safetensors file, or has a dtype that numpy does not know.
    """
    with open_tensors(path) as handle:
        arrays = {}
        for name in handle.keys():  # noqa: SIM118  (not a mapping)
            try:
                arrays[name] = handle.get_tensor(name)
            except (AttributeError, TypeError, KeyError) as error:
                dtype = handle.get_slice(name).get_dtype()
                raise TensorFileError(f"{path}: {name!r} has dtype {dtype}, which cannot be read here") from error
        return TensorFile(arrays, dict(handle.metadata() or {}))


def read_header(path: Path | str) -> dict[str, str]:
    """The strings in the header of a safetensors file, without reading its arrays. Raises TensorFileError."""
    with open_tensors(path) as handle:
        return dict(handle.metadata() or {})


def write_described(
    directory: Path | str, stem: str, arrays: Mapping[str, jax.Array | np.ndarray], description: Mapping[str, Any]
) -> Path:
    """Write `<stem>.safetensors` and `<stem>.json` in one directory. Existing files are replaced.

    The JSON file is written last and holds the SHA-256 of the tensors under "sha256". If a crash replaces only one of
    the two files, `read_described` detects it.

    Args:
      directory: created if it is missing.
      stem: the name of both files.
      arrays: as in `write_tensors`.
      description: JSON values. `read_described` expects an entry "format".

    Returns:
      The directory.

    Raises:
      TensorFileError: as in `write_tensors`.
    """
    tensors = write_tensors(Path(directory) / f"{stem}.safetensors", arrays)
    text = json.dumps({**description, "sha256": _sha256(tensors)}, indent=2) + "\n"
    atomic_write(tensors.with_suffix(".json"), text)
    return Path(directory)


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
      TensorFileError: a file is missing, its format is not supported, the SHA-256 of the tensors differs, or a dtype is
        not allowed.
    """
    described, tensors = (Path(directory) / f"{stem}.{suffix}" for suffix in ("json", "safetensors"))
    for path in (described, tensors):
        if not path.is_file():
            raise TensorFileError(
                f"no {what} in {directory}: {path.name} is missing; a {what} is {described.name} and {tensors.name}"
            )
    try:
        description = json.loads(described.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TensorFileError(f"cannot read {described}: {error}") from error
    found = description.get("format") if isinstance(description, dict) else description
    if not isinstance(description, dict) or found not in formats:
        raise TensorFileError(f"{described} has format {found!r}; this version reads {', '.join(map(str, formats))}")
    if _sha256(tensors) != description.get("sha256"):
        raise TensorFileError(
            f"{tensors} is not the file that {described.name} describes (SHA-256): it was cut short, altered, or a "
            "save was interrupted between the two; save it again"
        )
    arrays = read_tensors(tensors).arrays
    for name, array in arrays.items():
        if str(array.dtype) not in dtypes:
            raise TensorFileError(
                f"{tensors}: {name!r} has dtype {array.dtype}; a {what} has {', '.join(sorted(dtypes))}"
            )
    return description, arrays


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises TensorFileError if the file is missing or contains something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = sorted(other.name for other in path.parent.glob("*"))[:10]
        raise TensorFileError(
            f"there is no {path.name} in {path.parent} (which has {', '.join(beside) or 'nothing'})"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TensorFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TensorFileError(f"{path} should hold a JSON object, it holds a {type(value).__name__}")
    return value


def is_file_name(name: object, suffix: str = "") -> bool:
    """Whether `name` (from an index file) is a bare file name, which cannot lead out of its directory."""
    return isinstance(name, str) and Path(name).name == name and "\\" not in name and name.endswith(suffix)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
