"""Tensors of torch files: views of storages, and the functions that a torch file names to build them.

`read_pickle` calls these functions with values out of a file. They make records of storages and tensors. When the whole
pickle is read, `plain_values` turns the records into arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.inert_pickle import Inert, Named

REMEDY = "load it once with torch, in a place where you trust it, and save its tensors with safetensors"
_DTYPES: dict[str, Any] = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16,
    "int64": np.int64, "int32": np.int32, "int16": np.int16, "int8": np.int8, "uint64": np.uint64,
    "uint32": np.uint32, "uint16": np.uint16, "uint8": np.uint8, "bool": np.bool_,
    "complex128": np.complex128, "complex64": np.complex64,
}  # fmt: skip
_REFUSED_DTYPES = (
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
    *("complex32", "qint8", "quint8", "qint32", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8", "bits2x4"),
    "bits4x2",
)
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64", "QUInt8": "quint8", "QInt8": "qint8", "QInt32": "qint32", "QUInt4x2": "quint4x2",
    "QUInt2x4": "quint2x4",
}  # fmt: skip
_STORAGE_DTYPES = {f"{at}.{name}Storage": dtype for name, dtype in _STORAGES.items() for at in ("torch", "torch.cuda")}
_UNTYPED = "torch.storage.UntypedStorage"
_DTYPE_NAMES = {f"torch.{name}": name for name in (*_DTYPES, *_REFUSED_DTYPES)}
NAMED = frozenset((*_STORAGE_DTYPES, _UNTYPED, *_DTYPE_NAMES))
MAX_REPEATED = 1 << 30
"""The most bytes of a tensor that repeats entries of its storage (`expand`). It takes no space in the file, so its size
is free for the writer to choose."""
MAX_DEPTH = 64
MAX_OBJECTS = 10_000_000


class TorchFileError(UserError):
    """A torch file that is damaged, of an unknown layout, or holds more than tensors and plain values."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """What a pickle says of a storage: its dtype (None: the tensor says it), its key, and its size in entries."""

    dtype: str | None
    key: str
    size: int
    file: Storages


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Known:
    itemsize: int


class Storages:
    """The storages of a file by key. Each is compared with its checksum once."""

    def __init__(self, where: str, record: Callable[[str], np.ndarray], swapped: bool):
        self.where, self.record, self.swapped = where, record, swapped
        self.known: dict[str, _Known] = {}
        self._records: dict[str, np.ndarray] = {}

    def refer(self, identity: Any) -> Storage:
        """The storage that a persistent id of torch names."""
        if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
            raise TorchFileError(f"{self.where} refers to an object that is no storage; {REMEDY}")
        _, kind, key, location, size = identity[:5]
        if not (isinstance(kind, Named) and type(key) is str and type(location) is str and type(size) is int):
            raise TorchFileError(f"{self.where} is damaged: it describes a storage in a way that is not known")
        if identity[5:] not in ((), (None,)):
            raise TorchFileError(f"{self.where} has a storage that is a part of another one; {REMEDY}")
        if kind.name != _UNTYPED and kind.name not in _STORAGE_DTYPES:
            raise TorchFileError(f"{self.where} has a storage of class {kind.name[:200]}, which is not known; {REMEDY}")
        dtype = _STORAGE_DTYPES.get(kind.name)
        itemsize = 1 if dtype is None else _dtype(dtype, self.where).itemsize
        if self.known.setdefault(key, _Known(itemsize)).itemsize != itemsize:
            raise TorchFileError(f"{self.where} has a storage that is read with entries of two sizes; {REMEDY}")
        return Storage(dtype, key, size, self)

    def content(self, storage: Storage) -> np.ndarray:
        """The bytes of a storage. Raises if their number is not the one that the pickle states."""
        if storage.key not in self._records:
            self._records[storage.key] = self.record(storage.key)
        content = self._records[storage.key]
        stated = storage.size * self.known[storage.key].itemsize
        if stated != len(content):
            raise TorchFileError(
                f"{self.where} is damaged: a storage should have {stated} bytes, and has {len(content)}"
            )
        return content


def _dtype(name: str, where: str) -> np.dtype:
    if name not in _DTYPES:
        raise TorchFileError(
            f"{where} has tensors of dtype {name}; known are {', '.join(_DTYPES)}. Convert them once with torch"
        )
    return np.dtype(_DTYPES[name])


def _array(tensor: _Tensor, where: str) -> np.ndarray:
    """The array of a tensor: a view of its storage, which it must not leave."""
    dtype, content = _dtype(tensor.dtype, where), tensor.storage.file.content(tensor.storage)
    if len(content) % dtype.itemsize:
        raise TorchFileError(f"{where} is damaged: a storage of {len(content)} bytes has entries of {dtype}")
    entries = len(content) // dtype.itemsize
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    count = math.prod(tensor.shape)
    if count and last >= entries:
        raise TorchFileError(
            f"{where} is damaged: a tensor of shape {list(tensor.shape)}, strides {list(tensor.strides)} and offset "
            f"{tensor.offset} leaves its storage of {entries} entries"
        )
    if count * dtype.itemsize > max(len(content), MAX_REPEATED):
        raise TorchFileError(f"{where} has a tensor of shape {list(tensor.shape)} that repeats {entries} entries")
    if not count:
        return np.zeros(tensor.shape, dtype)
    if tensor.storage.file.swapped:
        part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        content = content.reshape(-1, part)[:, ::-1].reshape(-1)
    if dtype == np.bool_:
        flat = content != 0  # a byte of another value than 0 and 1 is no bool of NumPy
    else:
        flat = content.view(dtype)  # also where the file does not align it
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides, writeable=False)


def plain_values(value: Any, where: str) -> Any:
    """What a pickle built, as plain values. Tensors become arrays, and dtypes their names.

    Raises:
      TorchFileError: a tensor leaves its storage, its dtype is not known, the values are nested too deep or contain
        themselves, or something is no plain value.
    """
    return _Plain(where).convert(value)


class _Plain:
    def __init__(self, where: str):
        self.where = where
        self.done: dict[int, tuple[Any, int, Any]] = {}  # id -> (converted, number of objects, kept alive)
        self.open: set[int] = set()

    def convert(self, value: Any) -> Any:
        return self._convert(value, 0)[0]

    def _convert(self, value: Any, depth: int) -> tuple[Any, int]:
        if value is None or type(value) in (bool, int, float, str, bytes):
            return value, 1
        if id(value) in self.done:
            converted, objects, _ = self.done[id(value)]
            return converted, objects
        if depth > MAX_DEPTH or id(value) in self.open:
            raise TorchFileError(f"{self.where} is nested more than {MAX_DEPTH} times, or contains itself")
        self.open.add(id(value))
        converted, objects = self._container(value, depth + 1)
        self.open.discard(id(value))
        if objects > MAX_OBJECTS:  # few lists that hold each other many times become many objects for a reader
            raise TorchFileError(f"{self.where} holds more than {MAX_OBJECTS:,} objects")
        self.done[id(value)] = converted, objects, value
        return converted, objects

    def _container(self, value: Any, depth: int) -> tuple[Any, int]:
        if isinstance(value, _Tensor):
            return _array(value, self.where), 1
        if isinstance(value, Named) and value.name in _DTYPE_NAMES:
            return _DTYPE_NAMES[value.name], 1
        if isinstance(value, Inert):
            (arguments, state, items), objects = self._each([value.arguments, value.state, value.items], depth)
            return Inert(value.name, tuple(arguments), state, items), objects
        if type(value) in (list, tuple):
            parts, objects = self._each(value, depth)
            return parts if type(value) is list else tuple(parts), objects
        if type(value) is dict:
            parts, objects = self._each(value.values(), depth)
            return dict(zip(value, parts, strict=True)), objects
        name = value.name if isinstance(value, Named) else type(value).__name__.lstrip("_").lower()
        raise TorchFileError(f"{self.where} holds {name[:200]!r} itself, not a tensor or a plain value; {REMEDY}")

    def _each(self, values: Any, depth: int) -> tuple[list[Any], int]:
        pairs = [self._convert(value, depth) for value in values]
        return [converted for converted, _ in pairs], 1 + sum(objects for _, objects in pairs)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None) -> _Tensor:
    sizes = [*shape, *strides] if type(shape) is type(strides) is tuple else [None]
    numbers = all(type(n) is int and 0 <= n < 1 << 60 for n in [offset, *sizes])
    if not isinstance(storage, Storage) or not numbers or len(shape) != len(strides) or len(shape) > 32:
        raise TorchFileError("the file is damaged: a tensor has no storage, or no valid offset, shape and strides")
    dtype = storage.dtype if dtype is None else dtype
    if dtype is None:
        raise TorchFileError("the file is damaged: a tensor has no dtype")
    return _Tensor(storage, dtype, offset, shape, strides)


def _rebuild_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, metadata: Any = None
) -> _Tensor:
    if metadata:
        raise TorchFileError(f"a tensor is stored as conjugated or negated, which is not read; {REMEDY}")
    return _rebuild_tensor(storage, offset, shape, strides)


def _rebuild_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> _Tensor:
    if metadata or not isinstance(dtype, Named) or dtype.name not in _DTYPE_NAMES:
        raise TorchFileError(f"a tensor is stored with a dtype or metadata that are not known; {REMEDY}")
    return _rebuild_tensor(storage, offset, shape, strides, _DTYPE_NAMES[dtype.name])


def _parameter(data: Any, gradient: Any, hooks: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise TorchFileError("the file is damaged: a parameter holds no tensor")
    return data


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    if type(pairs) not in (list, tuple) or not all(
        type(pair) in (list, tuple) and len(pair) == 2 and type(pair[0]) in (str, int) for pair in pairs
    ):
        raise TorchFileError("the file is damaged: a dictionary is not made of keys and values")
    return dict(pairs)


def _size(shape: Any = ()) -> tuple[int, ...]:
    if type(shape) is not tuple or not all(type(n) is int for n in shape):
        raise TorchFileError("the file is damaged: a torch.Size holds no numbers")
    return shape


def _encoded(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding != "latin1":
        raise TorchFileError("the file has bytes in an unknown encoding")
    return text.encode("latin1")


BUILDERS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "_codecs.encode": _encoded,  # how protocol 2 spells bytes
}
