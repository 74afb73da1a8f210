"""Sums over batches: in float32 within a batch, on the device, and in float64 (int64) over batches, on the host. A
float32 total over millions of tokens would lose the digits that the figures are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError


def add(total: Any, batch: Any) -> Any:
    """`total` (None at first) + what one batch gives, a pytree of arrays."""
    batch = jax.tree.map(_wide, jax.device_get(batch))
    return batch if total is None else jax.tree.map(np.add, total, batch)


def over(rows: Iterable[Array], of_batch: Callable[[Array], Any]) -> Any:
    """The sum of `of_batch(x)` over the batches `rows`. UserError where there are none."""
    total = None
    for x in rows:
        total = add(total, of_batch(x))
    if total is None:
        raise UserError("no rows: give an iterable of [row, d] arrays that has not been used up")
    return total


def _wide(a: Any) -> np.ndarray:
    a = np.asarray(a)
    return a.astype(np.int64 if a.dtype.kind == "i" else np.float64)
