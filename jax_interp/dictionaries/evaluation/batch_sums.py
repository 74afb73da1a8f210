"""Sums over batches: float32 within a batch, on the device; float64 (or int64) over batches, on the host.

A float32 sum over millions of tokens would not be precise enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jaxtyping import Array, PyTree

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host


def add_batch(total: PyTree[np.ndarray] | None, batch: PyTree[Array]) -> PyTree[np.ndarray]:
    """Add one batch to the sum.

    Args:
      total: the sum so far. None before the first batch.
      batch: the contribution of the batch, a pytree of arrays.
    """
    batch = jax.tree.map(_wide, to_host(batch))
    return batch if total is None else jax.tree.map(np.add, total, batch)


def sum_batches(rows: Iterable[Array], of_batch: Callable[[Array], PyTree[Array]]) -> PyTree[np.ndarray]:
    """The sum of `of_batch(x)` over the batches `rows`. Raises UserError if there are no batches."""
    total = None
    for x in rows:
        total = add_batch(total, of_batch(x))
    if total is None:
        raise UserError("no rows: give an iterable of [row, d] arrays that has not been used up")
    return total


def _wide(a: np.ndarray) -> np.ndarray:
    a = np.asarray(a)
    return a.astype(np.int64 if a.dtype.kind == "i" else np.float64)
