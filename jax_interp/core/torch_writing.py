"""Write a state dict so that `torch.load` reads it: a zip archive with a pickle and one entry per tensor.

The pickle only names the functions of torch that rebuild a tensor. Torch also loads it with `weights_only=True`.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from jax_interp.core.atomic_write import replacing
from jax_interp.core.errors import UserError

_STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long", "int32": "Int",
    "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool",
}  # fmt: skip


def write_torch(path: Path | str, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write arrays by name, atomically, in the layout of `torch.save`.

    Args:
      path: the file to create or replace. Its directory must exist.
      tensors: the arrays.

    Returns:
      `path`.

    Raises:
      UserError: torch has no such dtype, or the file cannot be written.
    """
    for name, array in tensors.items():
        if str(np.asarray(array).dtype) not in _STORAGES:
            raise UserError(f"{name!r} has dtype {array.dtype}; torch files are written with {', '.join(_STORAGES)}")
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickle(tensors))
        archive.writestr("archive/byteorder", sys.byteorder)
        for key, array in enumerate(tensors.values()):
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            with archive.open(f"archive/data/{key}", "w", force_zip64=data.nbytes > 1 << 30) as entry:
                entry.write(memoryview(data))
        archive.writestr("archive/version", "3\n")
    return Path(path)


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    out.write(pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK)
    for key, (name, array) in enumerate(tensors.items()):
        out.write(_text(name) + _tensor(str(key), np.asarray(array)))
    out.write(pickle.SETITEMS + pickle.STOP)
    return out.getvalue()


def _tensor(key: str, array: np.ndarray) -> bytes:
    """`_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)`."""
    strides = [1]
    for size in array.shape[:0:-1]:
        strides.insert(0, strides[0] * size)
    kind = _global("torch", f"{_STORAGES[str(array.dtype)]}Storage")
    storage = [_text("storage"), kind, _text(key), _text("cpu"), _number(array.size)]
    arguments = [
        _tuple(storage) + pickle.BINPERSID,
        _number(0),
        _tuple(map(_number, array.shape)),
        _tuple(map(_number, strides[: array.ndim])),
        pickle.NEWFALSE,
        _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE,
    ]
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(arguments) + pickle.REDUCE


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _number(number: int) -> bytes:
    return pickle.LONG1 + b"\x08" + struct.pack("<q", number)


def _tuple(items: Iterable[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
