"""Torch files, written without torch: the zip layout of `torch.save`, its older layout, and hostile ones.

    save(path, {"W": array, "k": 3, "cfg": Object("some.module.Config", {"d": 4})})

Python's own pickler writes the instructions. It is told to write a name for `Name`, as if torch were installed.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long", "int32": "Int",
    "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool", "complex128": "ComplexDouble",
    "complex64": "ComplexFloat",
}  # fmt: skip
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function, which the pickle only names."""

    module: str
    name: str

    def __call__(self, *arguments):
        raise AssertionError("a name was called")


@dataclasses.dataclass(frozen=True)
class Object:
    """An object of a class, with its attributes: "package.module.Class"."""

    cls: str
    state: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """The numbers that tensors are views of. `entries`: the size that the file states; None: the true one."""

    array: np.ndarray
    entries: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage. `entries`: the size of the storage that the file states; None: the true one."""

    storage: np.ndarray
    offset: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    entries: int | None = None

    @classmethod
    def of(cls, array: np.ndarray) -> Tensor:
        array = np.asarray(array)
        strides = [1]
        for size in array.shape[:0:-1]:
            strides.append(strides[-1] * size)
        return cls(np.ascontiguousarray(array).reshape(-1), 0, array.shape, tuple(strides[::-1][-array.ndim or 1 :]))


@dataclasses.dataclass(frozen=True)
class Call:
    """A call that the pickle asks for."""

    function: Name
    arguments: tuple[Any, ...]


class _Pickler(pickle._Pickler):  # the one in Python, whose parts can be replaced
    def __init__(self, file, storages: dict[str, np.ndarray], legacy: bool, embedded: bool = False):
        super().__init__(file, protocol=2)
        self.storages, self.legacy, self.embedded = storages, legacy, embedded
        self.keys: dict[int, str] = {}

    def save_global(self, obj, name=None):
        if not isinstance(obj, Name):
            return super().save_global(obj, name)
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        self.memoize(obj)

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, Object):
            return super().save(obj, save_persistent_id)
        module, _, name = obj.cls.rpartition(".")
        self.save_global(Name(module, name))
        self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
        self.save(obj.state)
        self.write(pickle.BUILD)

    def persistent_id(self, obj):
        if not isinstance(obj, Storage) or self.embedded:
            return None
        key = self.keys.setdefault(id(obj.array), str(len(self.keys)))
        self.storages[key] = obj.array
        kind = Name("torch", STORAGES[obj.array.dtype.name] + "Storage")
        entries = len(obj.array) if obj.entries is None else obj.entries
        return ("storage", kind, key, "cpu", entries, None)[: 6 if self.legacy else 5]

    def reducer_override(self, obj):
        if isinstance(obj, Name):
            return obj.name
        if isinstance(obj, np.ndarray):
            obj = Tensor.of(obj)
        if isinstance(obj, Call):
            return obj.function, obj.arguments
        if isinstance(obj, Storage):
            return Name("torch.storage", "_load_from_bytes"), (legacy(obj),)
        if isinstance(obj, Tensor):
            return rebuilding(Storage(obj.storage, obj.entries), obj)
        return NotImplemented


def rebuilding(storage: Any, tensor: Tensor) -> tuple[Name, tuple[Any, ...]]:
    """The call that makes a tensor of a storage."""
    hooks = Call(Name("collections", "OrderedDict"), ())
    arguments = (storage, tensor.offset, tuple(tensor.shape), tuple(tensor.strides), False, hooks)
    return Name("torch._utils", "_rebuild_tensor_v2"), arguments


def pickled(content: Any, storages: dict[str, np.ndarray] | None = None, legacy: bool = False) -> bytes:
    """The pickle of a value. Arrays in it become tensors; their storages are put in `storages`."""
    file = io.BytesIO()
    _Pickler(file, {} if storages is None else storages, legacy).dump(content)
    return file.getvalue()


def write_archive(
    path: Path, pickle: bytes, storages: Mapping[str, bytes], *, root: str = "archive", byteorder: str | None = "little"
) -> Path:
    """A zip archive in the layout of `torch.save`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickle)
        if byteorder is not None:
            archive.writestr(f"{root}/byteorder", byteorder)
        for key, content in storages.items():
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", "3\n")
    return path


def save(path: Path, content: Any, *, byteorder: str = "little") -> Path:
    """What `torch.save(content, path)` writes. Arrays in `content` become tensors."""
    storages: dict[str, np.ndarray] = {}
    pickle = pickled(content, storages)
    stored = {key: _bytes(array, byteorder == "big") for key, array in storages.items()}
    return write_archive(path, pickle, stored, byteorder=byteorder)


def save_legacy(path: Path, content: Any) -> Path:
    """What torch before 1.6 writes."""
    path.write_bytes(legacy(content))
    return path


def legacy(content: Any) -> bytes:
    """Pickles in a row, then the storages."""
    storages: dict[str, np.ndarray] = {}
    pickle = pickled(content, storages, legacy=True)
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickled(LEGACY_MAGIC), pickled(1001), pickled(system), pickle, pickled(list(storages))]
    for array in storages.values():
        parts += [struct.pack("<q", len(array)), array.tobytes()]
    return b"".join(parts)


def save_plain(path: Path, content: Any) -> Path:
    """What `pickle.dump` writes, compressed if the name ends in `.gz`. Each storage is a torch file of its own."""
    file = io.BytesIO()
    _Pickler(file, {}, legacy=False, embedded=True).dump(content)
    path.write_bytes(gzip.compress(file.getvalue()) if path.suffix == ".gz" else file.getvalue())
    return path


def _bytes(array: np.ndarray, swapped: bool) -> bytes:
    if not swapped:
        return array.tobytes()
    if array.dtype == ml_dtypes.bfloat16:
        return array.view(np.uint16).byteswap().tobytes()
    return array.byteswap().tobytes()
