"""Activations on disk: written once, read by many training runs.

    store = write_activation_store("acts/", model, "blocks.2.resid_post", batch_at, rows=2_000_000)
    store = open_activation_store("acts/")
    store.batch_at(step, 2048)         2048 rows in random order, a pure function of the step

A store is a directory with `shard-00000.npy`, ... and a manifest `store.json` (activation_manifest.py). Each row of a
shard is the concatenation of all values of one token. Shards are memory-mapped. A shard is written completely before
the manifest names it, so a write that was killed can be resumed by the same call.

A damaged store is refused. The manifest, and the shapes and dtypes of the shards, are checked when the store is opened.
The rows of a shard are compared with their SHA-256 when they are first read, so opening takes no time.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from jaxtyping import Float

from jax_interp.core.array_files import check_array, open_array, write_arrays
from jax_interp.core.errors import UserError
from jax_interp.core.locks import locked
from jax_interp.data.activation_manifest import (
    MANIFEST,
    ShardEntry,
    StoreManifest,
    differences,
    entry_for,
    read_manifest,
    statistics,
)
from jax_interp.data.harvest import EMPTY_BATCHES, Addresses, TokenBatch, harvest, values
from jax_interp.data.shuffling import shuffled
from jax_interp.surgery import Model
from jax_interp.training.fingerprint import fingerprints
from jax_interp.training.progress import progress
from jax_interp.training.row_batches import RowBatches


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

    def batches(self, batch: int, seed: int = 0) -> RowBatches[Float[np.ndarray, "row d"]]:
        """The batches `batch_at(step, batch, seed)`, as a function of the step. On a mesh over several processes each
        one reads only the rows of its devices."""

        def rows(step: int, start: int, stop: int) -> np.ndarray:
            at = step * batch + np.arange(start, stop)
            return self.take(shuffled(at % self.rows, self.rows, seed=seed, epoch=at // self.rows))

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


@dataclasses.dataclass(frozen=True)
class StoreLayout:
    """The files of a store."""

    shard_rows: int = 131_072
    """Rows in a file."""
    dtype: Literal["float16", "float32"] = "float16"
    """The dtype of the stored rows."""


def write_activation_store(
    directory: Path | str,
    model: Model,
    addresses: Addresses,
    batch_at: Callable[[int], TokenBatch],
    rows: int,
    *,
    model_name: str = "",
    layout: StoreLayout = StoreLayout(),
    quiet: bool = False,
) -> ActivationStore:
    """Harvest activations until `rows` rows are on disk. If an earlier call was stopped, resume it.

    Args:
      directory: the directory of the store. It is created if it is missing.
      model: any model that names its values.
      addresses: the addresses of the values to store, as in `harvest.values`.
      batch_at: batch number -> (tokens, keep), a pure function of the number. Positions where `keep` is False are not
        stored.
      rows: the number of rows of the complete store.
      model_name: the name of the model, written to the manifest.
      layout: the size and dtype of the files.
      quiet: show no progress.

    Returns:
      The complete store.

    Raises:
      UserError: a value is not finite or exceeds the range of float16, the masks exclude every position, all values are
        zero, or the directory contains another store (with other addresses, sizes, weights, or first batch).

    Example:
        store = write_activation_store("acts", model, "blocks.2.resid_post", batch_at, rows=2_000_000)
    """
    directory = Path(directory)
    addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    parts = jax.eval_shape(lambda model, tokens: values(model, addresses, tokens), model, batch_at(0)[0])
    asked = StoreManifest(
        model=model_name,
        addresses=addresses,
        widths=tuple(part.shape[1] for part in parts),
        dtype=layout.dtype,
        rows=rows,
        shard_rows=layout.shard_rows,
        weights="".join(fingerprints(model).values()),
        tokens=_digest(batch_at(0)),
    )
    if _resumed(directory, asked).statistics is None:
        with locked(directory / ".lock", f"the store {directory}"):
            _complete(directory, model, batch_at, _resumed(directory, asked), quiet)
    return open_activation_store(directory)


def _complete(
    directory: Path, model: Model, batch_at: Callable[[int], TokenBatch], manifest: StoreManifest, quiet: bool
) -> None:
    """Write the shards that are missing, and the statistics."""
    view = progress("harvest", manifest.written, manifest.rows, [], quiet=quiet)
    try:
        for shard in _harvested(model, batch_at, manifest):
            entry = write_shard(directory, len(manifest.shards), shard, manifest.dtype)
            manifest = dataclasses.replace(manifest, shards=(*manifest.shards, entry))
            manifest.write(directory)
            view.step(manifest.written)
    finally:
        view.close()
    dataclasses.replace(manifest, statistics=statistics(manifest.shards, manifest.widths)).write(directory)


def _resumed(directory: Path, asked: StoreManifest) -> StoreManifest:
    """The manifest in the directory, whose shards are whole, or `asked`. Raises UserError for another store."""
    if not (directory / MANIFEST).is_file():
        return asked
    manifest = read_manifest(directory)
    if changed := differences(manifest, asked):
        changes = ", ".join(
            f"other {name}" if name in ("weights", "tokens") else f"{name} {found!r}, not {wanted!r}"
            for name, (found, wanted) in changed.items()
        )
        raise UserError(f"{directory} holds another store: {changes}; choose another directory, or remove this one")
    for shard in _shards(directory, manifest):
        check_array(shard.path, shard.unverified, shard.sha256)
    return manifest


def _digest(batch: TokenBatch) -> str:
    """The SHA-256 of a token batch and its mask."""
    digest = hashlib.sha256()
    for part in batch:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _harvested(
    model: Model, batch_at: Callable[[int], TokenBatch], manifest: StoreManifest
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields for each missing shard: its rows, the next batch number, and how many rows of that batch are used."""
    cursor, used = (manifest.shards[-1].next_batch, manifest.shards[-1].used) if manifest.shards else (0, 0)
    missing = manifest.rows - manifest.written
    read = jax.jit(lambda model, tokens: harvest(model, manifest.addresses, tokens))
    parts: list[np.ndarray] = []
    empty = 0
    while missing > 0:
        size = min(manifest.shard_rows, missing)
        while sum(len(part) for part in parts) < size:
            tokens, keep = batch_at(cursor)
            kept = np.asarray(read(model, tokens))[np.asarray(keep).reshape(-1)]
            parts.append(kept[used:])
            cursor, used = cursor + 1, 0
            empty = 0 if len(kept) else empty + 1
            if empty == EMPTY_BATCHES:
                raise UserError(f"the masks of {empty} token batches in a row exclude every position: nothing to store")
        rows = np.concatenate(parts)
        rest = len(rows) - size
        # a call that resumes here harvests the remaining rows again
        yield rows[:size], cursor - 1 if rest else cursor, len(kept) - rest if rest else 0
        parts, missing = [rows[size:]], missing - size


def write_shard(directory: Path, index: int, shard: tuple[np.ndarray, int, int], dtype: str) -> ShardEntry:
    """Write one file of rows.

    Args:
      directory: the directory of the store.
      index: the number of the file.
      shard: the rows, and where the token batches continue (`ShardEntry.next_batch`, `ShardEntry.used`).
      dtype: the dtype of the file.

    Returns:
      The entry of the manifest.

    Raises:
      UserError: a number is not finite, or exceeds the range of the dtype.
    """
    raw, cursor, used = shard
    with np.errstate(over="ignore"):  # checked in the next line
        rows = raw.astype(dtype)
    if not np.isfinite(rows).all():
        what = (
            "are not finite"
            if not np.isfinite(raw).all()
            else f"exceed {dtype}'s range: ask for StoreLayout(dtype='float32')"
        )
        raise UserError(f"activations of shard {index} {what}")
    entry = entry_for(index, rows, cursor, used)
    write_arrays(directory, {Path(entry.file).stem: rows})
    return entry


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
            f"{directory} has only {manifest.written} of {manifest.rows} rows: repeat the same write_activation_store "
            "call to complete it"
        )
    shards = _shards(directory, manifest)
    if verify:
        for shard in shards:
            shard.rows  # noqa: B018  reading them compares them
    stored = {name: np.asarray(a, np.float32) for name, a in vars(manifest.statistics).items()}
    return ActivationStore(directory, manifest.addresses, manifest.widths, shards, manifest=manifest, **stored)


def _shards(directory: Path, manifest: StoreManifest) -> tuple[Shard, ...]:
    width = sum(manifest.widths)
    paths = [directory / entry.file for entry in manifest.shards]
    rows = [open_array(p, (e.rows, width), manifest.dtype) for p, e in zip(paths, manifest.shards, strict=True)]
    return tuple(Shard(p, e.sha256, r) for p, e, r in zip(paths, manifest.shards, rows, strict=True))
