"""Activations on disk: written once, read by many training runs.

    store = write_activation_store("acts/", model, "blocks.2.resid_post", batch_at, rows=2_000_000)
    store = open_activation_store("acts/")
    store.batch_at(step, 2048)         2048 rows in random order, a pure function of the step

A store is a directory with `shard-00000.npy`, ... and a manifest `store.json`. Each row of a shard is the concatenation
of all values of one token. Shards are memory-mapped when they are read. The manifest has the addresses, widths, dtype
and statistics of the rows, and for each shard the number of rows and the SHA-256. A shard is written completely before
the manifest names it, so a write that was killed can be resumed by the same call. A damaged store is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float

from jax_interp.core.atomic_write import atomic_write, replacing
from jax_interp.core.errors import UserError
from jax_interp.data.harvest import EMPTY_BATCHES, Addresses, TokenBatch, harvest, values
from jax_interp.data.shuffling import shuffled
from jax_interp.surgery import Model
from jax_interp.training.fingerprint import fingerprints
from jax_interp.training.progress import progress

MANIFEST, FORMAT = "store.json", 1


@dataclasses.dataclass(frozen=True)
class ActivationStore:
    """Rows of activations on disk. `write_activation_store` and `open_activation_store` return it."""

    directory: Path
    addresses: tuple[str, ...]
    """The addresses of the values that are concatenated in a row."""
    widths: tuple[int, ...]
    """The width of each value."""
    shards: tuple[np.ndarray, ...]
    """Memory-mapped arrays `[row, sum of the widths]`."""
    scale: np.ndarray
    """The factor of each value that makes E‖x‖² equal to its width. `[value]`."""
    mean: np.ndarray
    """The mean of the scaled rows. `[sum of the widths]`."""
    variance: np.ndarray
    """E‖x - mean‖² of each scaled value. `[value]`."""
    manifest: dict[str, Any]

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
        at = np.arange(step * batch, (step + 1) * batch)
        return self.take(shuffled(at % self.rows, self.rows, seed=seed, epoch=at // self.rows))

    def take(self, rows: np.ndarray) -> Float[np.ndarray, "batch d"]:
        """The rows with these indices, in float32."""
        ends = np.cumsum([len(shard) for shard in self.shards])
        out, which = np.empty((len(rows), sum(self.widths)), np.float32), np.searchsorted(ends, rows, side="right")
        for i in np.unique(which):
            in_shard = np.flatnonzero(which == i)
            order = in_shard[np.argsort(rows[in_shard])]  # ascending, so that the disk is read forwards
            out[order] = self.shards[i][rows[order] - (ends[i] - len(self.shards[i]))]
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
    directory.mkdir(parents=True, exist_ok=True)
    parts = jax.eval_shape(lambda model, tokens: values(model, addresses, tokens), model, batch_at(0)[0])
    about = {
        "format": FORMAT,
        "model": model_name,
        "addresses": list(addresses),
        "widths": [part.shape[1] for part in parts],
        "dtype": layout.dtype,
        "rows": rows,
        "shard_rows": layout.shard_rows,
        "weights": "".join(fingerprints(model).values()),
        "tokens": _digest(batch_at(0)),
    }
    manifest = _resumed(directory, about)
    if manifest["statistics"] is None:
        view = progress("harvest", sum(s["rows"] for s in manifest["shards"]), rows, [], quiet=quiet)
        try:
            for shard in _harvested(model, addresses, batch_at, manifest):
                manifest["shards"].append(_write_shard(directory, len(manifest["shards"]), shard, layout.dtype))
                atomic_write(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
                view.step(sum(s["rows"] for s in manifest["shards"]))
        finally:
            view.close()
        manifest["statistics"] = _statistics(manifest["shards"], manifest["widths"])
        atomic_write(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return open_activation_store(directory, verify=False)


def _resumed(directory: Path, about: dict[str, Any]) -> dict[str, Any]:
    """The manifest in the directory, or a new manifest. Raises UserError if the directory has another store."""
    if not (directory / MANIFEST).is_file():
        return about | {"shards": [], "statistics": None}
    manifest = _manifest(directory)
    changed = [name for name in about if manifest.get(name) != about[name]]
    if changed:
        differs = lambda name: f"{name} {manifest.get(name)!r}, not {about[name]!r}"
        changes = ", ".join(f"other {n}" if n in ("weights", "tokens") else differs(n) for n in changed)
        raise UserError(f"{directory} holds another store: {changes}; choose another directory, or remove this one")
    return manifest


def _digest(batch: TokenBatch) -> str:
    """The SHA-256 of a token batch and its mask."""
    digest = hashlib.sha256()
    for part in batch:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _harvested(
    model: Model, addresses: Addresses, batch_at: Callable[[int], TokenBatch], manifest: dict[str, Any]
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields for each missing shard: its rows, the next batch number, and how many rows of that batch are used."""
    last = manifest["shards"][-1] if manifest["shards"] else {"next_batch": 0, "used": 0}
    cursor, used = last["next_batch"], last["used"]
    missing = manifest["rows"] - sum(shard["rows"] for shard in manifest["shards"])
    read = jax.jit(lambda model, tokens: harvest(model, addresses, tokens))
    parts: list[np.ndarray] = []
    empty = 0
    while missing > 0:
        size = min(manifest["shard_rows"], missing)
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


def _write_shard(directory: Path, index: int, shard: tuple[np.ndarray, int, int], dtype: str) -> dict[str, Any]:
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
    name = f"shard-{index:05d}.npy"
    with replacing(directory / name) as temporary, open(temporary, "wb") as file:
        np.save(file, rows)
    exact = rows.astype(np.float64)
    return {
        "file": name,
        "rows": len(rows),
        "sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
        "next_batch": cursor,
        "used": used,
        "sum": exact.sum(0).tolist(),
        "square": (exact**2).sum(0).tolist(),
    }


def _statistics(shards: list[dict[str, Any]], widths: list[int]) -> dict[str, Any]:
    n = sum(shard["rows"] for shard in shards)
    mean = np.sum([shard["sum"] for shard in shards], axis=0) / n
    square = np.sum([shard["square"] for shard in shards], axis=0) / n
    ends = np.cumsum(widths)[:-1]
    total = lambda a: np.array([part.sum() for part in np.split(a, ends)])
    with np.errstate(divide="ignore"):
        scale = np.sqrt(np.array(widths) / total(square))
    if not np.isfinite(scale).all():
        raise UserError("the activations of a value are all zero: there is no scale that makes E‖x‖² its width")
    return {
        "scale": scale.tolist(),
        "mean": (mean * np.repeat(scale, widths)).tolist(),
        "variance": (total(square - mean**2) * scale**2).tolist(),
    }


def _manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(
            f"no activation store in {directory}: there is no {MANIFEST}; write_activation_store makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {directory / MANIFEST}: {error}") from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"{directory / MANIFEST} has format {manifest.get('format')!r}; this version reads {FORMAT}")
    return manifest


def open_activation_store(directory: Path | str, *, verify: bool = True) -> ActivationStore:
    """Memory-map a complete store.

    Args:
      directory: the directory of the store.
      verify: read the store once and compare every shard with its SHA-256.

    Raises:
      UserError: there is no store, writing it was not finished, or a shard is missing, cut short or altered (the
        message names it).
    """
    directory = Path(directory)
    manifest = _manifest(directory)
    if manifest["statistics"] is None:
        done = sum(shard["rows"] for shard in manifest["shards"])
        raise UserError(
            f"{directory} has only {done} of {manifest['rows']} rows: repeat the same write_activation_store call to "
            "complete it"
        )
    shards = tuple(_open_shard(directory, entry, manifest, verify) for entry in manifest["shards"])
    statistics = {name: np.asarray(a, np.float32) for name, a in manifest["statistics"].items()}
    addresses, widths = tuple(manifest["addresses"]), tuple(manifest["widths"])
    return ActivationStore(directory, addresses, widths, shards, manifest=manifest, **statistics)


def _open_shard(directory: Path, entry: dict[str, Any], manifest: dict[str, Any], verify: bool) -> np.ndarray:
    path = directory / Path(entry["file"]).name  # a bare name: the manifest cannot lead out of the directory
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; write the store again") from error
    if rows.shape != (entry["rows"], sum(manifest["widths"])) or str(rows.dtype) != manifest["dtype"]:
        raise UserError(f"{path} holds {rows.shape} {rows.dtype}, not what {MANIFEST} says; write the store again")
    if verify and hashlib.sha256(rows.tobytes()).hexdigest() != entry["sha256"]:
        raise UserError(f"{path} was changed since it was written (SHA-256); write the store again")
    return rows
