"""The files of an activation store while it is written: each shard has a note beside it until the store is complete.

    shard-00003.npy      the rows
    shard-00003.json     their number, their SHA-256, their sums, and where the next shard begins

Shards can be written in any order and by several processes. A shard that has its note is finished. `finish` joins the
notes into the manifest, which is the same whoever wrote the shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from jax_interp.core.array_files import array_sha256, check_array, open_array, write_arrays
from jax_interp.core.config_json import from_json
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.data.activation_manifest import RowSums, ShardEntry, StoreManifest, shard_name, statistics

CHUNK = 8192
"""Rows whose sums are computed at once in float64."""


@dataclasses.dataclass(frozen=True)
class StoreLayout:
    """The files of a store."""

    shard_rows: int = 131_072
    """Rows in a file."""
    dtype: Literal["float16", "float32"] = "float16"
    """The dtype of the stored rows."""


LAYOUT = StoreLayout()


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in the stream of kept rows: after `used` kept rows of token batch `batch`."""

    batch: int = 0
    used: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.used) < 0:
            raise UserError(f"there is no batch {self.batch} with {self.used} used rows")


@dataclasses.dataclass(frozen=True)
class Note:
    """What is known about a finished shard."""

    shard: ShardEntry
    sums: RowSums
    after: Place
    """Where the next shard begins."""


def note_path(directory: Path, index: int) -> Path:
    """The note of shard number `index`."""
    return directory / Path(shard_name(index)).with_suffix(".json")


def read_note(directory: Path, index: int) -> Note | None:
    """The note of a shard, or None if the shard is not finished. Raises UserError if the note is damaged."""
    path = note_path(directory, index)
    return from_json(Note, read_json(path), str(path)) if path.is_file() else None


def write_shard(
    directory: Path, index: int, rows: np.ndarray, after: Place = Place(), *, every_process: bool = False
) -> None:
    """Write the rows of a shard, and then its note.

    Args:
      directory: the directory of the store.
      index: the number of the shard.
      rows: finite rows in the dtype of the store, as `stored` returns them.
      after: where the next shard begins.
      every_process: as in `atomic_write.replacing`.
    """
    entry = ShardEntry(shard_name(index), len(rows), array_sha256(rows))
    write_arrays(directory, {Path(entry.file).stem: rows}, every_process=every_process)
    values = {"shard": vars(entry), "sums": vars(_sums(rows)), "after": vars(after)}
    write_json(note_path(directory, index), values, indent=None, every_process=every_process)


def stored(raw: np.ndarray, dtype: str, index: int) -> np.ndarray:
    """Rows in the dtype of a store. Raises UserError if a number is not finite, or exceeds the range of the dtype."""
    with np.errstate(over="ignore"):  # checked in the next line
        rows = raw.astype(dtype)
    if not np.isfinite(rows).all():
        what = (
            "are not finite"
            if not np.isfinite(raw).all()
            else f"exceed {dtype}'s range: ask for StoreLayout(dtype='float32')"
        )
        raise UserError(f"activations of shard {index} {what}")
    return rows


def _sums(rows: np.ndarray) -> RowSums:
    total, square = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for start in range(0, len(rows), CHUNK):
        exact = rows[start : start + CHUNK].astype(np.float64)
        total += exact.sum(0)
        square += np.square(exact, out=exact).sum(0)
    return RowSums(len(rows), tuple(total.tolist()), tuple(square.tolist()))


def check_shard(directory: Path, entry: ShardEntry, width: int, dtype: str) -> None:
    """Raises UserError if the file of a shard is missing, cut short or altered."""
    path = directory / entry.file
    check_array(path, open_array(path, (entry.rows, width), dtype), entry.sha256)


def finish(directory: Path, manifest: StoreManifest, shards: int) -> None:
    """Join the notes of all shards into the manifest, and remove the notes.

    Args:
      directory: the directory of the store.
      manifest: the manifest without shards.
      shards: the number of shards.

    Raises:
      UserError: the values are all zero, or a note cannot be seen.
    """
    entries: list[ShardEntry] = []

    def sums() -> Iterator[RowSums]:
        for index in range(shards):  # one note in memory at a time: the sums of many shards are large
            note = read_note(directory, index)
            if note is None:
                raise UserError(f"{note_path(directory, index)} cannot be seen here: the hosts need a shared disk")
            entries.append(note.shard)
            yield note.sums

    found = statistics(sums(), manifest.widths)
    rows = sum(entry.rows for entry in entries)
    dataclasses.replace(manifest, rows=rows, shards=tuple(entries), statistics=found).write(directory)
    remove_notes(directory)


def remove_notes(directory: Path) -> None:
    """Remove all notes of shards."""
    for path in directory.glob("shard-*.json"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
