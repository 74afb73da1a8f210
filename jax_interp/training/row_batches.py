"""Batches of which each host makes only the rows of its own devices.

    batch_at = RowBatches(64, lambda number, start, stop: tokens_of(number)[start:stop])
    batch_at(3)                       the whole batch 3
    batch_at.rows(3, 16, 32)          its rows 16 to 31
    batch_on(batch_at, 3, mesh)       batch 3 on the mesh; each process makes only the rows of its devices

A plain function from a number to a batch works everywhere too. Every process then makes the whole batch and copies its
part to its devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from jax_interp.core.errors import UserError
from jax_interp.training.meshes import row_axes
from jax_interp.training.sharding import check_rows, shard_batch

Batch = TypeVar("Batch")
Other = TypeVar("Other")
Span = tuple[int, int]
"""Rows from the first number up to, but not including, the second."""


@dataclasses.dataclass(frozen=True)
class RowBatches(Generic[Batch]):
    """Batches by number, whose rows can be made separately. It is a function from a number to a whole batch.

    Attributes:
      size: the number of rows in a batch.
      of_rows: (number, start, stop) -> the rows `start` to `stop - 1` of this batch: a pytree of arrays whose first
        axis is the row. It is a pure function, and a row does not depend on which other rows are asked for.
    """

    size: int
    of_rows: Callable[[int, int, int], Batch]

    def __call__(self, number: int) -> Batch:
        """The whole batch."""
        return self.of_rows(number, 0, self.size)

    def rows(self, number: int, start: int, stop: int) -> Batch:
        """The rows `start` to `stop - 1` of a batch. Raises UserError if the batch does not have them."""
        if not 0 <= start <= stop <= self.size:
            raise UserError(f"a batch has rows 0 to {self.size - 1}: there are no rows {start} to {stop - 1}")
        return self.of_rows(number, start, stop)

    def map(self, function: Callable[[Batch], Other]) -> RowBatches[Other]:
        """The batches after a function that acts on each row separately."""
        return RowBatches(self.size, lambda number, start, stop: function(self.of_rows(number, start, stop)))


def spans(sharding: Sharding, rows: int, devices: Collection[Any]) -> list[Span]:
    """The rows of a batch that some devices hold, as few spans as possible, in order.

    Args:
      sharding: the sharding of the batch.
      rows: the number of rows of the batch.
      devices: some devices of the sharding.
    """
    of_device = sharding.devices_indices_map((rows,))
    held = sorted({_span(of_device[device], rows) for device in devices if device in of_device})
    merged: list[Span] = []
    for start, stop in held:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def _span(index: tuple[slice, ...], rows: int) -> Span:
    start, stop, _ = index[0].indices(rows)
    return start, stop


def batch_on(batch_at: RowBatches[Batch], number: int, mesh: Mesh) -> Batch:
    """A batch on a mesh: its rows are split as in `shard_batch`. A process makes only the rows of its own devices.

    Args:
      batch_at: the batches.
      number: the number of the batch.
      mesh: the mesh.

    Raises:
      UserError: the rows cannot be split equally.
    """
    check_rows(batch_at.size, mesh)
    rows, sharding = batch_at.size, NamedSharding(mesh, PartitionSpec(row_axes(mesh)))
    parts = {span: batch_at.rows(number, *span) for span in spans(sharding, rows, sharding.addressable_devices)}

    def of_leaf(*leaves: Any) -> jax.Array:
        held = {span: np.asarray(leaf) for span, leaf in zip(parts, leaves, strict=True)}

        def part(index: Any) -> np.ndarray:
            start, stop = _span(index, rows)
            (first, _), leaf = next((span, leaf) for span, leaf in held.items() if span[0] <= start and stop <= span[1])
            return leaf[start - first : stop - first]

        return jax.make_array_from_callback((rows, *leaves[0].shape[1:]), sharding, part)

    return jax.tree.map(of_leaf, *parts.values())


def batches_on(batch_at: Callable[[int], Batch], mesh: Mesh) -> Callable[[int], Batch]:
    """`batch_at` with each batch on the mesh: by `batch_on` for `RowBatches`, by `shard_batch` for other functions."""
    if isinstance(batch_at, RowBatches):
        return lambda number: batch_on(batch_at, number, mesh)
    return lambda number: shard_batch(batch_at(number), mesh)
