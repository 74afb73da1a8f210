"""The manifest of an activation store: what `store.json` holds, read and checked, and the statistics of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jax_interp.core.config_json import from_json
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.core.local_paths import check_local
from jax_interp.data.harvest import scale_of
from jax_interp.surgery import canonical

MANIFEST, FORMAT = "store.json", 2
"""Format 1 kept the sums of every shard in the manifest."""


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """What the manifest says about one file of rows."""

    file: str
    rows: int
    sha256: str
    """The SHA-256 of the bytes of the rows."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """The statistics of all rows, see `ActivationStore`."""

    scale: tuple[float, ...]
    mean: tuple[float, ...]
    variance: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class StoreManifest:
    """The content of `store.json`. `statistics` is None until all rows are written."""

    model: str
    addresses: tuple[str, ...]
    widths: tuple[int, ...]
    dtype: Literal["float16", "float32"]
    rows: int
    shard_rows: int
    weights: str
    """A fingerprint of the model's weights."""
    tokens: str
    """The SHA-256 of the first token batch and its mask."""
    shards: tuple[ShardEntry, ...] = ()
    statistics: Statistics | None = None
    format: int = FORMAT

    @property
    def written(self) -> int:
        """The number of rows in the shards."""
        return sum(shard.rows for shard in self.shards)

    def __post_init__(self) -> None:
        object.__setattr__(self, "addresses", canonical(self.addresses))
        width, n = sum(self.widths), len(self.widths)
        stored = self.statistics or Statistics((0.0,) * n, (0.0,) * width, (0.0,) * n)
        wrong = {
            f"format is {self.format}; this version reads {FORMAT}": self.format != FORMAT,
            "addresses and widths differ in number": len(self.addresses) != n or n == 0,
            f"widths {self.widths} are not all positive": min(self.widths, default=0) < 1,
            f"rows is {self.rows}, shard_rows {self.shard_rows}: below 1": min(self.rows, self.shard_rows) < 1,
            f"the shards have {self.written} rows of {self.rows}": self.written > self.rows,
            "there are statistics before all rows": self.statistics is not None and self.written != self.rows,
            "the statistics have other lengths than the widths": [
                len(a) for a in (stored.scale, stored.mean, stored.variance)
            ]
            != [n, width, n],
        } | {
            f"shards[{i}] is not {shard_name(i)} with at least one row": (shard.file != shard_name(i) or shard.rows < 1)
            for i, shard in enumerate(self.shards)
        }
        for what, holds in wrong.items():
            if holds:
                raise UserError(what)

    def write(self, directory: Path) -> None:
        """Write `store.json`."""
        values = vars(self) | {"shards": [vars(shard) for shard in self.shards]}
        if self.statistics is not None:
            values["statistics"] = vars(self.statistics)
        write_json(directory / MANIFEST, values)


def shard_name(index: int) -> str:
    """The file of shard number `index`."""
    return f"shard-{index:05d}.npy"


def read_manifest(directory: Path) -> StoreManifest:
    """Read `store.json`. Raises UserError if it is missing, damaged, or not a manifest of this version."""
    path = directory / MANIFEST
    check_local(path.parent)
    if not path.is_file():
        raise UserError(f"no activation store in {directory}: there is no {MANIFEST}; write_activation_store makes one")
    values = read_json(path)
    if values.get("format") == 1:
        values = _from_format_1(values, path)
    if values.get("format") != FORMAT:
        raise UserError(f"{path} has format {values.get('format')!r}; this version reads {FORMAT}")
    return from_json(StoreManifest, values, str(path))


def _from_format_1(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """A manifest of format 1 in this format, without the sums of shards, which only writing needs."""
    if values.get("statistics") is None:
        raise UserError(
            f"{path.parent} was begun by an earlier version and is not complete: remove it, and write it again"
        )
    shards, names = values.get("shards"), [field.name for field in dataclasses.fields(ShardEntry)]
    if isinstance(shards, list) and all(isinstance(shard, dict) for shard in shards):
        values |= {"shards": [{name: shard[name] for name in names if name in shard} for shard in shards]}
    return values | {"format": FORMAT}


@dataclasses.dataclass(frozen=True)
class RowSums:
    """Sums over rows, from which the statistics of a store are computed."""

    rows: int
    sum: tuple[float, ...]
    """The sum of the rows. `[sum of the widths]`."""
    square: tuple[float, ...]
    """The sum of their squares. `[sum of the widths]`."""


def statistics(shards: Iterable[RowSums], widths: Sequence[int]) -> Statistics:
    """The statistics of the rows of all shards. Raises UserError if a value is always zero."""
    n, sums, squares = 0, np.zeros(sum(widths)), np.zeros(sum(widths))
    for shard in shards:  # one after the other, so that the result depends only on the shards
        n, sums, squares = n + shard.rows, sums + np.asarray(shard.sum), squares + np.asarray(shard.square)
    mean, square = sums / n, squares / n
    ends = np.cumsum(widths)[:-1]
    total = lambda a: np.array([part.sum() for part in np.split(a, ends)])
    spread = total(square - mean**2)
    with np.errstate(divide="ignore"):
        scale = scale_of(widths, total(square), spread)
    if not np.isfinite(scale).all():
        raise UserError("the activations of a value are all zero: there is no scale that makes E‖x‖² its width")
    listed = lambda a: tuple(a.tolist())
    variance = spread * scale**2
    return Statistics(listed(scale), listed(mean * np.repeat(scale, widths)), listed(variance))


def differences(manifest: StoreManifest, asked: StoreManifest) -> dict[str, tuple[Any, Any]]:
    """The fields in which a stored manifest differs from the one that is asked for, each with both values."""
    names = [f.name for f in dataclasses.fields(StoreManifest) if f.name not in ("shards", "statistics")]
    both = {name: (getattr(manifest, name), getattr(asked, name)) for name in names}
    return {name: (found, wanted) for name, (found, wanted) in both.items() if found != wanted}
