"""Activations on disk: written once, read by many training runs.

    store = open_activation_store("acts/")
    store.batch_at(step, 2048)         2048 rows in random order, a pure function of the step

`write_activation_store` (activation_writing.py) and `import_activations` (activation_import.py) make a store. It is a
directory with `shard-00000.npy`, ... and a manifest `store.json` (activation_manifest.py). Each row of a shard is the
concatenation of all values of one token. Shards are memory-mapped.

A damaged store is refused. The manifest, and the shapes and dtypes of the shards, are checked when the store is opened.
The rows of a shard are compared with their SHA-256 when they are first read, so opening takes no time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from jax_interp.core.array_files import check_array, open_array
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.data.activation_manifest import StoreManifest, read_manifest
from jax_interp.data.shuffling import shuffled, shuffled_in_windows
from jax_interp.training.row_batches import RowBatches

BLOCK = 4096
"""Neighbouring rows that stay together where rows are shuffled within windows."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """The rows of one file."""

    path: Path
    sha256: str
    unverified: np.ndarray
    """The rows, memory-mapped, before they were compared with their SHA-256."""

    def __len__(self) -> int:
        return len(self.unverified)

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Memory-mapped rows `[row, sum of the widths]`. Raises UserError the first time if they were changed."""
        check_array(self.path, self.unverified, self.sha256)
        return self.unverified


@dataclasses.dataclass(frozen=True)
class ActivationStore:
    """Rows of activations on disk. `write_activation_store` and `open_activation_store` return it."""

    directory: Path
    addresses: tuple[str, ...]
    """The addresses of the values that are concatenated in a row."""
    widths: tuple[int, ...]
    """The width of each value."""
    shards: tuple[Shard, ...]
    scale: np.ndarray
    """The factor of each value that makes E‖x‖² equal to its width. `[value]`."""
    mean: np.ndarray
    """The mean of the scaled rows. `[sum of the widths]`."""
    variance: np.ndarray
    """E‖x - mean‖² of each scaled value. `[value]`."""
    manifest: StoreManifest

    @property
    def rows(self) -> int:
        """The number of rows in all shards."""
        return sum(len(shard) for shard in self.shards)

    def batch_at(self, step: int, batch: int, seed: int = 0) -> Float[np.ndarray, "batch d"]:
        """The raw rows of one training step: a pure function of (seed, step).

        Each epoch visits every row once, in an order that depends on the seed and the epoch. A batch may extend into
        the next epoch.

        Args:
          step: the number of the step, from 0.
          batch: the number of rows in a batch.
          seed: the seed of the order.

        Returns:
          float32 `[batch, sum of the widths]`.
        """
        return self.batches(batch, seed)(step)

    def batches(self, batch: int, seed: int = 0, window: int | None = None) -> RowBatches[Float[np.ndarray, "row d"]]:
        """Batches of shuffled rows, as a function of the step. On a mesh over several processes each one reads only the
        rows of its devices.

        Args:
          batch: the number of rows in a batch.
          seed: the seed of the order.
          window: None: all rows are shuffled, and a batch is `batch_at(step, batch, seed)`. A number of rows: the rows
            are shuffled within windows of about this size, which consist of blocks of `BLOCK` neighbouring rows from
            the whole store. A window that fits in memory is then read from the disk once an epoch. Rows of one block,
            which are neighbours in the text, are trained on near each other.

        Raises:
          UserError: `batch` or `window` is below 1.
        """
        if batch < 1 or (window is not None and window < 1):
            raise UserError(f"batch={batch} and window={window} must be at least 1")
        n = self.rows

        def rows(step: int, start: int, stop: int) -> np.ndarray:
            at = step * batch + np.arange(start, stop)
            place, epoch = at % n, at // n
            if window is None:
                return self.take(shuffled(place, n, seed=seed, epoch=epoch))
            return self.take(shuffled_in_windows(place, n, window=window, block=BLOCK, seed=seed, epoch=epoch))

        return RowBatches(batch, rows)

    def in_order(self, batch: int) -> Iterator[Float[np.ndarray, "batch d"]]:
        """All rows once, in the order of the files, in float32. The last batch may be shorter.

        Example:
            evaluate_rows(sae, store.in_order(4096))
        """
        if batch < 1:
            raise UserError(f"batch={batch} must be at least 1")
        for start in range(0, self.rows, batch):
            yield self.take(np.arange(start, min(start + batch, self.rows)))

    def take(self, rows: np.ndarray) -> Float[np.ndarray, "batch d"]:
        """The rows with these indices, in float32. Raises UserError if the file of a row was changed."""
        ends = np.cumsum([len(shard) for shard in self.shards])
        out, which = np.empty((len(rows), sum(self.widths)), np.float32), np.searchsorted(ends, rows, side="right")
        for i in np.unique(which):
            in_shard = np.flatnonzero(which == i)
            order = in_shard[np.argsort(rows[in_shard])]  # ascending, so that the disk is read forwards
            out[order] = self.shards[i].rows[rows[order] - (ends[i] - len(self.shards[i]))]
        return out


def open_activation_store(directory: Path | str, *, verify: bool = False) -> ActivationStore:
    """Memory-map a complete store.

    Args:
      directory: the directory of the store.
      verify: read the store once and compare every shard with its SHA-256 now, not when its rows are first read.

    Raises:
      UserError: there is no store, writing it was not finished, or a shard is missing, cut short or altered (the
        message names it).
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if manifest.statistics is None:
        raise UserError(
            f"{directory} has only {_written(directory)} of {manifest.rows} rows: repeat the same "
            "write_activation_store call to complete it"
        )
    shards = _shards(directory, manifest)
    if verify:
        for shard in shards:
            shard.rows  # noqa: B018  reading them compares them
    stored = {name: np.asarray(a, np.float32) for name, a in vars(manifest.statistics).items()}
    return ActivationStore(directory, manifest.addresses, manifest.widths, shards, manifest=manifest, **stored)


def _written(directory: Path) -> int:
    """The rows of the finished shards of a store that is not complete."""
    notes = (read_json(path) for path in sorted(directory.glob("shard-*.json")))
    return sum(note["shard"]["rows"] for note in notes)


def _shards(directory: Path, manifest: StoreManifest) -> tuple[Shard, ...]:
    width = sum(manifest.widths)
    paths = [directory / entry.file for entry in manifest.shards]
    rows = [open_array(p, (e.rows, width), manifest.dtype) for p, e in zip(paths, manifest.shards, strict=True)]
    return tuple(Shard(p, e.sha256, r) for p, e, r in zip(paths, manifest.shards, rows, strict=True))
