"""Copy tensors of mapped files into host memory: by several threads, transposed on the way, and checked for NaN.

A tensor that is stored as `[out, in]` is copied in blocks that fit into the processor's cache. A transposed copy of the
whole would jump through memory. A block is checked while it is in the cache.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import DTypeLike

_ALIGNMENT = 64
"""JAX uses memory of NumPy without a copy if it begins at a multiple of this number of bytes."""
_ROWS = 32
"""The rows of a block that is transposed: two lines of the processor's cache in float32."""
_PAD = 16
"""The rows of a block are this much longer than they need be. Rows whose distance is a power of two share few places in
the processor's cache, and would push one another out."""
_PIECE = 2**22
"""The bytes that a thread copies at a time."""


def empty_aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An array without values, at an address that JAX can use without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def copy_checked(source: np.ndarray, out: np.ndarray) -> bool:
    """Copy `source` to `out`, cast to its dtype, by several threads.

    Args:
      source: the values, as a view of any strides.
      out: an array of the same shape, which is written.

    Returns:
      Whether all values are finite in the dtype of `out`.
    """
    if source.ndim < 2 or source.nbytes < _PIECE:
        return _copy(source, out)
    transposed = abs(source.strides[0]) < abs(source.strides[1])  # then each piece is some columns, which lie together
    step = max(1, _PIECE // max(1, source.nbytes // source.shape[1 if transposed else 0]))
    step = -(-step // _ROWS) * _ROWS if transposed else step
    cuts = [slice(at, at + step) for at in range(0, source.shape[1 if transposed else 0], step)]
    pieces = [(source[:, cut], out[:, cut]) if transposed else (source[cut], out[cut]) for cut in cuts]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        return all(threads.map(lambda piece: _copy(*piece), pieces))


def _copy(source: np.ndarray, out: np.ndarray) -> bool:
    turned = source.ndim == 2 and abs(source.strides[0]) < abs(source.strides[1])
    with np.errstate(over="ignore"):  # a value that the dtype cannot hold is infinite, and found here
        return all((_by_blocks if turned else _by_rows)(source, out))


def _by_rows(source: np.ndarray, out: np.ndarray) -> Iterator[bool]:
    out[...] = source
    yield _is_finite(out)


def _by_blocks(source: np.ndarray, out: np.ndarray) -> Iterator[bool]:
    """Copy a transposed matrix through a small block, which holds some of its columns as rows."""
    n, m = source.shape
    block = np.empty((_ROWS, n + _PAD), out.dtype)[:, :n]
    for at in range(0, m, _ROWS):
        columns = slice(at, min(at + _ROWS, m))
        rows = block[: columns.stop - at]
        rows[...] = source[:, columns].T
        yield _is_finite(rows)
        out[:, columns] = rows.T


def _is_finite(array: np.ndarray) -> bool:
    if array.dtype.kind == "f":
        return bool(np.isfinite(array).all())
    exponent = {"bfloat16": 0x7F80}[array.dtype.name]  # of NaN and of infinity all bits of the exponent are set
    return not bool(((array.view(np.uint16) & exponent) == exponent).any())
