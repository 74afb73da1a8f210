"""Batches that threads make ahead of their use, in order.

    batches = read_ahead(batch_at, ReadAhead(threads=4, batches=8))
    fit(step, state, batch_at, batches=batches, ...)

The batches are those of `batch_at`, bit for bit: a thread only decides when a batch is made. A run that resumes at step
n begins at batch n, so nothing about the threads is saved.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from jax_interp.core.errors import UserError

Batch = TypeVar("Batch")


@dataclasses.dataclass(frozen=True)
class ReadAhead:
    """How many batches are made ahead. They are in host memory, or on the devices if `batch_at` puts them there."""

    threads: int = 2
    """Threads that make batches. 0: a batch is made when it is asked for."""
    batches: int = 4
    """The most batches that are made ahead."""

    def __post_init__(self) -> None:
        if self.threads < 0 or self.batches < 1:
            raise UserError(f"threads={self.threads}, batches={self.batches}: give at least 0 threads and 1 batch")


AHEAD = ReadAhead()


def read_ahead(
    batch_at: Callable[[int], Batch], options: ReadAhead = AHEAD, *, stop: int = sys.maxsize
) -> Callable[[int], Iterator[Batch]]:
    """A function from the number of the first batch to an iterator over the batches from there on, made by `grain`.

    Args:
      batch_at: a pure function of the number of a batch, which threads may call at the same time.
      options: how many threads and batches.
      stop: the number after the last batch.

    Returns:
      The function, as `fit(batches=...)` takes it. An error of `batch_at` is raised where its batch is asked for. The
      threads end when the iterator is no longer used.
    """
    if not options.threads:
        return lambda start: (batch_at(number) for number in range(start, stop))

    def from_batch(start: int) -> Iterator[Batch]:
        import grain

        reading = grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=options.batches)
        return iter(grain.MapDataset.range(start, stop).map(batch_at).to_iter_dataset(reading))

    return from_batch
