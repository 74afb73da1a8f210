"""Arrays inside an HTML page: compressed, in blocks of rows, and as base64 text.

A script of the page decodes a block when it needs it, so a page with many arrays opens quickly. Base64 text cannot
close an HTML element, whatever the arrays and texts hold.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

BLOCK_BYTES = 1 << 18
"""The bytes of a block before compression. One block is decoded to show one row."""
DTYPES = ("uint8", "uint16", "uint32", "int32", "float16", "float32")


def packed_text(text: str) -> str:
    """A text as base64 of its compressed UTF-8. Lone surrogates are not UTF-8: escape them before."""
    return _packed(text.encode())


def packed_json(values: Any) -> str:
    """JSON values as base64 of compressed text. NaN and infinite numbers are refused: give None in their place."""
    return packed_text(json.dumps(values, allow_nan=False, separators=(",", ":")))


def packed_arrays(arrays: Mapping[str, Shaped[np.ndarray, "row ..."]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Pack arrays into blocks.

    The bytes of the numbers of a block are stored in planes: all first bytes, then all second bytes. Small integers and
    sparse numbers are compressed better this way.

    Args:
      arrays: the arrays, of a dtype in `DTYPES`. The first axis is divided into blocks.

    Returns:
      (a description of each array: {"dtype", "shape", "rows": rows of a block, "blocks": number of blocks}; the base64
      text of each block, by its name `<array>/<number>`).
    """
    described, blocks = {}, {}
    for name, array in arrays.items():
        dtype = array.dtype.name
        assert dtype in DTYPES, f"{name} is {dtype}"
        stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        count, row_bytes = len(stored), max(1, stored.nbytes // max(1, len(stored)))
        rows = max(1, BLOCK_BYTES // row_bytes)
        parts = [_planes(stored[first : first + rows]) for first in range(0, count, rows)]
        blocks |= {f"{name}/{number}": _packed(part) for number, part in enumerate(parts)}
        described[name] = {"dtype": dtype, "shape": list(array.shape), "rows": rows, "blocks": len(parts)}
    return described, blocks


def scaled_half(values: Float[np.ndarray, "row ..."]) -> tuple[Float[np.ndarray, "row ..."], Float[np.ndarray, " row"]]:
    """Numbers as half precision times one scale for each row.

    The relative error is at most 2⁻¹¹ for numbers above 6e-5 of the largest one. A number that is not zero does not
    become zero. Half precision alone has no numbers above 65504.

    Args:
      values: the numbers. NaN stays NaN.

    Returns:
      (the numbers divided by the scale of their row, in float16; the scales, which are the largest magnitudes).
    """
    flat = np.asarray(values, np.float32).reshape(len(values), -1)
    largest = np.max(np.abs(flat), axis=1, initial=0.0, where=np.isfinite(flat))
    scale = np.where(largest > 0, largest, 1.0).astype(np.float32)
    half = (flat / scale[:, None]).astype(np.float16)
    lost = (half == 0) & (flat != 0)
    half[lost] = np.copysign(np.finfo(np.float16).smallest_subnormal, flat[lost]).astype(np.float16)
    return half.reshape(values.shape), scale


def smallest_unsigned(values: Shaped[np.ndarray, "..."], limit: int) -> Shaped[np.ndarray, "..."]:
    """Integers from 0 to `limit` in the smallest unsigned dtype that holds them."""
    return values.astype(np.uint8 if limit < 2**8 else np.uint16 if limit < 2**16 else np.uint32)


def _planes(values: Shaped[np.ndarray, "..."]) -> bytes:
    return np.frombuffer(values.tobytes(), np.uint8).reshape(-1, values.dtype.itemsize).T.tobytes()


def _packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 6)).decode()


def used_rows(ids: Sequence[Shaped[np.ndarray, "..."]]) -> Shaped[np.ndarray, " used"]:
    """The ids that are used, the most frequent first. Negative ids are left out."""
    flat = np.concatenate([np.asarray(part).reshape(-1) for part in ids]) if ids else np.zeros(0, np.int64)
    used, counts = np.unique(flat[flat >= 0], return_counts=True)
    return used[np.argsort(-counts, kind="stable")]
