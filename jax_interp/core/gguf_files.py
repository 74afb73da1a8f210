"""GGUF files: strings and numbers by name, and tensors by name, in one file. The format of llama.cpp.

    write_gguf("v.gguf", {"general.architecture": "controlvector"}, {"direction.1": vector})
    file = read_gguf("v.gguf")                        file.metadata, file.arrays

Version 3 is written, and versions 2 and 3 are read, in little-endian order. Tensors are written in float32. They are
read in float32, float16 and bfloat16; a quantised tensor is refused by the name of its type.

Files that are read are not trusted. Every length, count and offset is compared with the size of the file before it is
used. A file that was written here has a digest, which is compared too. Files of other programs have none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jax_interp.core.atomic_write import make_directory, replacing
from jax_interp.core.errors import UserError
from jax_interp.core.processes import on_host

MAGIC = b"GGUF"
DIGEST = "jax_interp.digest"
_ALIGNMENT = 32
_NUMBERS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_FLOATS = {0: np.dtype(np.float32), 1: np.dtype(np.float16), 30: np.dtype(ml_dtypes.bfloat16)}
_OTHER = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K",
    14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


class GGUFError(UserError):
    """A GGUF file that is missing, damaged, or not of this kind."""


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """The content of a GGUF file."""

    metadata: dict[str, Any]
    """Strings, numbers, booleans and lists of them, by name."""
    arrays: dict[str, np.ndarray]
    """The tensors by name, with the fastest axis last."""


def write_gguf(
    path: Path | str, metadata: Mapping[str, str | int], arrays: Mapping[str, jax.Array | np.ndarray]
) -> Path:
    """Write a GGUF file, atomically. Missing directories are created.

    Args:
      path: the file to create or replace.
      metadata: strings, and whole numbers from 0 to 2³² - 1, by name. The first is `general.architecture`.
      arrays: floating-point arrays by name, with 1 to 4 axes. They are written in float32.

    Returns:
      `path`.

    Raises:
      WriteError: the file cannot be written.
    """
    host = {name: np.ascontiguousarray(np.asarray(on_host(a)).astype(np.float32)) for name, a in arrays.items()}
    metadata = {**metadata, DIGEST: _digest(metadata, host)}
    head = MAGIC + struct.pack("<IQQ", 3, len(host), len(metadata))
    for name, value in metadata.items():
        written = struct.pack("<I", _STRING) + _string(value) if isinstance(value, str) else None
        head += _string(name) + (written or struct.pack("<II", _UINT32, value))
    end = 0
    for name, array in host.items():
        head += _string(name) + struct.pack(f"<I{array.ndim}QIQ", array.ndim, *reversed(array.shape), 0, end)
        end += array.nbytes + -array.nbytes % _ALIGNMENT
    make_directory(Path(path).parent)
    with replacing(Path(path)) as temporary, open(temporary, "wb") as file:
        file.write(head + bytes(-len(head) % _ALIGNMENT))
        for array in host.values():
            file.write(array.tobytes() + bytes(-array.nbytes % _ALIGNMENT))
    return Path(path)


def read_gguf(path: Path | str, check: Callable[[dict[str, Any]], None] = lambda metadata: None) -> GGUFFile:
    """Read a GGUF file.

    Args:
      path: a file that `write_gguf` or another program wrote.
      check: called with the metadata before a tensor is read. It can refuse the file: a whole model, for example.

    Raises:
      GGUFError: the file is missing, is not a complete GGUF file, has a tensor of another type, or was changed since
        it was written.
    """
    if not Path(path).is_file():  # opening a pipe would wait
        raise GGUFError(f"there is no file {str(path)!r}")
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parsed(_Reader(data, str(path)), check)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        why = getattr(error, "strerror", None) or error
        raise GGUFError(f"cannot read {str(path)!r} as a GGUF file: {why}") from error


class _Reader:
    """The bytes of a file, taken from the front. It never reads past the end."""

    def __init__(self, data: mmap.mmap, path: str) -> None:
        self.data, self.path, self.at = data, path, 0

    def error(self, why: str) -> GGUFError:
        return GGUFError(f"{self.path} is not a whole GGUF file: {why}")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise self.error(f"it ends at byte {len(self.data)}, and {count} bytes from byte {self.at} on are needed")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def string(self) -> str:
        raw = self.take(self.number("<Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"a string before byte {self.at} is not UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            form = _NUMBERS.get(inner)
            least = struct.calcsize(form) if form else 8
            if depth > 3 or count * least > len(self.data) - self.at:
                raise self.error(f"a list of {count} entries before byte {self.at} does not fit")
            if form:
                return list(struct.unpack(f"<{count}{form[1]}", self.take(count * least)))
            return [self.value(inner, depth + 1) for _ in range(count)]
        if kind not in _NUMBERS:
            raise self.error(f"a value before byte {self.at} has the unknown type {kind}")
        found = self.number(_NUMBERS[kind])
        return bool(found) if kind == _BOOL else found


def _parsed(file: _Reader, check: Callable[[dict[str, Any]], None]) -> GGUFFile:
    if file.take(4) != MAGIC:
        raise GGUFError(f"{file.path} is not a GGUF file: it does not begin with the letters GGUF")
    version, n_tensors, n_values = file.number("<I"), file.number("<Q"), file.number("<Q")
    if version not in (2, 3):
        raise GGUFError(f"{file.path} has version {version} of GGUF, or big-endian numbers: versions 2 and 3 are read")
    left = len(file.data) - file.at
    if n_values * 12 > left or n_tensors * 24 > left:
        raise file.error(f"it says that it has {n_tensors} tensors and {n_values} values, which is more than it holds")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        name = file.string()
        if name in metadata:
            raise file.error(f"the name {name!r} comes twice")
        metadata[name] = file.value(file.number("<I"))
    check(metadata)
    arrays = _arrays(file, n_tensors, metadata.get("general.alignment", _ALIGNMENT))
    digest = metadata.pop(DIGEST, None)
    if digest is not None and digest != _digest(metadata, arrays):
        raise GGUFError(f"{file.path} is damaged: its content was changed since it was written (its digest differs)")
    return GGUFFile(metadata, arrays)


def _arrays(file: _Reader, count: int, alignment: Any) -> dict[str, np.ndarray]:
    if isinstance(alignment, bool) or not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise file.error(f"general.alignment is {alignment!r}")
    places: dict[str, tuple[tuple[int, ...], np.dtype, int]] = {}
    for _ in range(count):
        name, axes = file.string(), file.number("<I")
        if name in places or not 1 <= axes <= 4:
            raise file.error(f"the tensor {name!r} comes twice, or has {axes} axes")
        shape = struct.unpack(f"<{axes}Q", file.take(8 * axes))
        kind, offset = file.number("<I"), file.number("<Q")
        if kind not in _FLOATS:
            raise GGUFError(
                f"{file.path}: the tensor {name!r} has type {_OTHER.get(kind, f'number {kind}')}; F32, F16 and BF16 "
                "are read"
            )
        places[name] = shape[::-1], _FLOATS[kind], offset
    begin, end = file.at + -file.at % alignment, 0
    found: dict[str, np.ndarray] = {}
    for name, (shape, dtype, offset) in sorted(places.items(), key=lambda item: item[1][2]):
        size = math.prod(shape) * dtype.itemsize
        if offset < end or offset % alignment:
            raise file.error(f"the tensor {name!r} begins inside another one, or is not aligned")
        if begin + offset + size > len(file.data):
            raise file.error(f"the tensor {name!r} ends {begin + offset + size - len(file.data)} bytes after the file")
        end = offset + size
        raw = file.data[begin + offset : begin + end]
        found[name] = np.frombuffer(raw, dtype).reshape(shape).copy()
    return {name: found[name] for name in places}


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _digest(metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    found = hashlib.sha256(repr([(name, type(value).__name__, value) for name, value in metadata.items()]).encode())
    for name, array in arrays.items():
        found.update(repr((name, array.dtype.name, array.shape)).encode())
        found.update(array.tobytes())
    return found.hexdigest()
