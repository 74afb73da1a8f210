"""Write an activation store: harvest the values of a model, on one host or on many.

    store = write_activation_store("acts/", model, "blocks.2.resid_post", batch_at, rows=2_000_000)

Over several processes each one writes its own shards. Which rows a shard has depends only on the masks of the token
batches, so a process finds the place where its first shard begins without running the model. No activations are
exchanged, and the files are the same for any number of processes.

If the model is on a mesh, the processes run it together. Each still writes its own shards.

A shard that was finished is not computed again: a call that was killed is repeated with any number of processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jax_interp.core.errors import UserError
from jax_interp.core.locks import locked
from jax_interp.core.processes import barrier, from_every, is_first_process, on_host, process_count, process_index
from jax_interp.core.shared_disk import check_shared
from jax_interp.data.activation_manifest import MANIFEST, StoreManifest, differences, read_manifest
from jax_interp.data.activation_shards import (
    LAYOUT,
    Place,
    StoreLayout,
    check_shard,
    finish,
    read_note,
    remove_notes,
    stored,
    write_shard,
)
from jax_interp.data.activation_store import ActivationStore, open_activation_store
from jax_interp.data.harvest import EMPTY_BATCHES, Addresses, TokenBatch, harvest, values
from jax_interp.surgery import Model
from jax_interp.training.fingerprint import fingerprints
from jax_interp.training.placement import automatic, on_mesh
from jax_interp.training.progress import progress
from jax_interp.training.sharding import shard_batch

BatchAt = Callable[[int], TokenBatch]


@dataclasses.dataclass(frozen=True)
class _Source:
    """The rows that a store is made of."""

    model: Model
    addresses: tuple[str, ...]
    batch_at: BatchAt
    mesh: Mesh | None

    def rows_from(self, place: Place, rows: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """At least `rows` kept rows from a place on. Yields (batch, its rows used before, its other kept rows).

        Without a mesh, the device computes the next batch while the rows of one are copied and written.
        """
        read = jax.jit(automatic(lambda model, tokens: harvest(model, self.addresses, tokens)))
        ahead = 1 if self.mesh is None else 0
        pending: deque[tuple[int, int, np.ndarray, jax.Array]] = deque()
        batch, used = place.batch, place.used
        counted = _Kept(self.batch_at)
        with on_mesh(self.mesh):
            while rows > 0 or pending:
                if rows > 0 and len(pending) <= ahead:
                    tokens, keep = counted(batch)
                    placed = tokens if self.mesh is None else shard_batch(tokens, self.mesh)
                    pending.append((batch, used, keep, read(self.model, placed)))
                    rows, batch, used = rows - (int(keep.sum()) - used), batch + 1, 0
                else:
                    number, before, mask, found = pending.popleft()
                    yield number, before, on_host(found)[mask][before:]

    def skip(self, place: Place, rows: int) -> Place:
        """The place after `rows` more kept rows. Only masks are looked at."""
        batch, used, counted = place.batch, place.used, _Kept(self.batch_at)
        while rows > 0:
            kept = int(counted(batch)[1].sum())
            if kept - used > rows:
                return Place(batch, used + rows)
            rows, batch, used = rows - (kept - used), batch + 1, 0
        return Place(batch, used)


class _Kept:
    """Batches with their masks as flat NumPy arrays. Raises UserError after many masks in a row that keep nothing."""

    def __init__(self, batch_at: BatchAt):
        self._batch_at, self._empty = batch_at, 0

    def __call__(self, number: int) -> tuple[jax.Array | np.ndarray, np.ndarray]:
        tokens, keep = self._batch_at(number)
        mask = np.asarray(keep).reshape(-1)
        self._empty = 0 if mask.any() else self._empty + 1
        if self._empty == EMPTY_BATCHES:
            raise UserError(
                f"the masks of {EMPTY_BATCHES} token batches in a row exclude every position: nothing to store"
            )
        return tokens, mask


def write_activation_store(
    directory: Path | str,
    model: Model,
    addresses: Addresses,
    batch_at: BatchAt,
    rows: int,
    *,
    model_name: str = "",
    layout: StoreLayout = LAYOUT,
    quiet: bool = False,
) -> ActivationStore:
    """Harvest activations until `rows` rows are on disk. If an earlier call was stopped, resume it.

    Every process of a run calls this. The directory must then be on a disk that all hosts share.

    Args:
      directory: the directory of the store. It is created if it is missing.
      model: any model that names its values. If it is on a mesh, batches are split over the mesh. Otherwise each
        process runs it on one device of its own. The rows have the same bits on any number of processes; on another
        mesh they differ by rounding.
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
        zero, the directory contains another store (with other addresses, sizes, weights, or first batch), or a process
        does not see the files of the first one.

    Example:
        store = write_activation_store("acts", model, "blocks.2.resid_post", batch_at, rows=2_000_000)
    """
    directory = Path(directory)
    addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    source = _Source(model, addresses, batch_at, _mesh_of(model))
    with on_mesh(source.mesh):
        found = automatic(lambda model, tokens: values(model, addresses, tokens))
        widths = tuple(part.shape[1] for part in jax.eval_shape(found, model, batch_at(0)[0]))
    asked = StoreManifest(
        model=model_name,
        addresses=addresses,
        widths=widths,
        dtype=layout.dtype,
        rows=rows,
        shard_rows=layout.shard_rows,
        weights="".join(fingerprints(model).values()),
        tokens=_digest(batch_at(0)),
    )
    if process_count() > 1:
        check_shared(directory, f"the store {directory}")
    if _same_store(directory, asked):  # also refuses another store before anything is created in its directory
        manifest = read_manifest(directory)
        if manifest.statistics is not None:
            _check(directory, manifest, range(len(manifest.shards)))
            return open_activation_store(directory)
    with locked(directory / ".lock", f"the store {directory}"):
        _complete(directory, source, asked, quiet)
        barrier(f"{directory} is complete")
    return open_activation_store(directory)


def _mesh_of(model: Model) -> Mesh | None:
    """The mesh that the weights of a model are on. None: they are on no mesh."""
    for leaf in jax.tree.leaves(model):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def _complete(directory: Path, source: _Source, asked: StoreManifest, quiet: bool) -> None:
    """Write the shards that are missing, and the manifest."""
    if is_first_process() and not (directory / MANIFEST).is_file():
        remove_notes(directory)
        asked.write(directory)
    barrier(f"{directory} is begun")
    _same_store(directory, asked)
    count = -(-asked.rows // asked.shard_rows)
    notes = [read_note(directory, index) is not None for index in range(count)]
    done = from_every(np.asarray(notes))[0]  # what the first process sees, since others may be writing already
    _check(directory, asked, np.flatnonzero(done).tolist())
    missing = np.flatnonzero(~done)
    view = progress("harvest", int(done.sum()), count, [], quiet=quiet or not is_first_process())
    try:
        if source.mesh is None:
            missing = np.array_split(missing, process_count())[process_index()]
        for order, (index, rows, after) in enumerate(_shards(directory, source, asked, missing.tolist())):
            mine = source.mesh is None or order % process_count() == process_index()
            if mine:
                write_shard(directory, index, rows, after, every_process=True)
            view.step(int(done.sum()) + (order + 1) * (process_count() if source.mesh is None else 1))
    finally:
        view.close()
    barrier(f"the shards of {directory} are written")
    if is_first_process():
        finish(directory, asked, count)


def _check(directory: Path, manifest: StoreManifest, indices: Sequence[int]) -> None:
    """Compare finished shards with their SHA-256. Each process reads its part of them."""
    for index in list(indices)[process_index() :: process_count()]:
        note = None if manifest.shards else read_note(directory, index)
        entry = manifest.shards[index] if note is None else note.shard
        check_shard(directory, entry, sum(manifest.widths), manifest.dtype)


def _shards(
    directory: Path, source: _Source, asked: StoreManifest, indices: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, Place]]:
    """Yields for each shard: its number, its rows, and where the next shard begins."""
    rows_of = lambda index: min(asked.shard_rows, asked.rows - index * asked.shard_rows)
    for run in _consecutive(indices):
        place = _begin(directory, source, asked.shard_rows, run[0])
        batches = source.rows_from(place, sum(map(rows_of, run)))
        number, used, rest = place.batch, place.used, np.empty((0, sum(asked.widths)))
        for index in run:
            rows, filled = np.empty((rows_of(index), sum(asked.widths)), asked.dtype), 0
            while filled < len(rows):
                if not len(rest):
                    number, used, rest = next(batches)
                taken = rest[: len(rows) - filled]
                rows[filled : filled + len(taken)] = stored(taken, asked.dtype, index)
                filled, used, rest = filled + len(taken), used + len(taken), rest[len(taken) :]
            yield index, rows, Place(number, used) if len(rest) else Place(number + 1, 0)


def _begin(directory: Path, source: _Source, shard_rows: int, index: int) -> Place:
    """Where a shard begins: after the nearest finished shard before it, and the rows of the shards between."""
    for before in range(index - 1, -1, -1):
        if (note := read_note(directory, before)) is not None:
            return source.skip(note.after, (index - 1 - before) * shard_rows)
    return source.skip(Place(), index * shard_rows)


def _consecutive(indices: Sequence[int]) -> list[list[int]]:
    """Ascending numbers, as runs without gaps."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _same_store(directory: Path, asked: StoreManifest) -> bool:
    """Whether the directory holds the store that is asked for. Raises UserError if it holds another one."""
    if not (directory / MANIFEST).is_file():
        return False
    if changed := differences(read_manifest(directory), asked):
        changes = ", ".join(
            f"other {name}" if name in ("weights", "tokens") else f"{name} {found!r}, not {wanted!r}"
            for name, (found, wanted) in changed.items()
        )
        raise UserError(f"{directory} holds another store: {changes}; choose another directory, or remove this one")
    return True


def _digest(batch: TokenBatch) -> str:
    """The SHA-256 of a token batch and its mask."""
    digest = hashlib.sha256()
    for part in batch:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
