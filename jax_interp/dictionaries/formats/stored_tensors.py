"""Tensors of `.safetensors`, `.npz` and torch files by name. Safetensors files are memory-mapped, not copied."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jax_interp.core.array_files import read_npz
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import parse_json
from jax_interp.core.tensor_files import open_tensors

_TORCH = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
_DTYPES: dict[str, Any] = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "U32": np.uint32,
    "I32": np.int32, "U64": np.uint64, "I64": np.int64, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F32": np.float32, "F64": np.float64,
}  # fmt: skip


def read_stored(path: Path) -> Mapping[str, Any]:
    """The tensors of a file, by name.

    Raises:
      UserError: the file is damaged, of another kind, or holds something else than tensors.
    """
    if path.suffix == ".safetensors":
        return _mapped(path)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in _TORCH:
        from jax_interp.core.torch_files import read_torch

        return read_torch(path)
    raise UserError(f"{path} is not a .safetensors, .npz or torch file")


def _mapped(path: Path) -> dict[str, np.ndarray]:
    with open_tensors(path), open(path, "rb") as file:  # opened once by safetensors, which checks offsets and overlaps
        (length,) = struct.unpack("<Q", file.read(8))
        header = parse_json(file.read(length), f"the header of {path}")
    data = np.memmap(path, np.uint8, mode="r", offset=8 + length) if path.stat().st_size > 8 + length else b""
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: {name!r} has dtype {entry['dtype']}; known are {', '.join(_DTYPES)}")
        start, end = entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        found[name] = np.frombuffer(data, dtype, (end - start) // dtype.itemsize, start).reshape(entry["shape"])
    return found
