"""The recipe of `store`: write the activations of a model to disk, and show what a store holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jax.sharding import Mesh

from jax_interp.core.errors import UserError
from jax_interp.data.activation_manifest import MANIFEST
from jax_interp.data.activation_shards import StoreLayout
from jax_interp.data.activation_store import ActivationStore, open_activation_store
from jax_interp.data.activation_writing import write_activation_store
from jax_interp.data.text import text_for
from jax_interp.models.hf import load


@dataclass(frozen=True)
class StoreConfig:
    """What a store is made of."""

    address: tuple[str, ...] = ()
    """The values to store, such as blocks.2.resid_post. A row has all of them, side by side."""
    rows: int = 1_000_000
    """The number of rows. A row is one token."""
    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    text: str = "stdlib"
    """"stdlib" (the standard library of Python), a UTF-8 file, a .jsonl or .parquet file, or a directory of them. Rows
    are of its training part. A text that is too short is read several times."""
    batch: int = 8
    """Sequences in each forward pass."""
    context: int = 256
    """Tokens in each sequence."""
    seed: int = 0
    """The seed of the order of the sequences."""
    dtype: Literal["float16", "float32"] = "float16"
    """The dtype of the stored rows."""
    shard_rows: int = 131_072
    """Rows in a file."""

    def __post_init__(self) -> None:
        for name in ("rows", "batch", "shard_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if self.context < 2:
            raise UserError(f"context={self.context} must be at least 2")


def write_store(
    config: StoreConfig, directory: Path | str, *, mesh: Mesh | None = None, quiet: bool = False
) -> ActivationStore:
    """Write a store, or complete one that was stopped.

    Args:
      config: what the store is made of.
      directory: the directory of the store.
      mesh: the mesh that the model is placed on. None: each process runs the whole model on one device.
      quiet: show no progress.

    Returns:
      The complete store.

    Raises:
      UserError: as in `write_activation_store`, or the model has no tokenizer or no such value.
    """
    model, tokenizer = load(config.model, mesh=mesh)
    if tokenizer is None:
        raise UserError(f"{config.model} has no tokenizer.json: its text cannot be cut into tokens")
    batch_at = text_for(config.text, tokenizer).training_batches(config.batch, config.context, config.seed)
    layout = StoreLayout(config.shard_rows, config.dtype)
    options = {"model_name": config.model, "layout": layout, "quiet": quiet}
    return write_activation_store(directory, model, config.address, batch_at, config.rows, **options)


def describe_store(directory: Path | str, *, verify: bool = False) -> list[tuple[str, str]]:
    """What a store holds, as rows (name, text).

    Args:
      directory: the directory of the store.
      verify: read all rows, and compare every file with its SHA-256.

    Raises:
      UserError: there is no complete store, or a file is missing or damaged.
    """
    store = open_activation_store(directory, verify=verify)
    manifest, size = store.manifest, np.dtype(store.manifest.dtype).itemsize
    ends = np.cumsum(store.widths)[:-1]
    lengths = [float((part**2).sum()) for part in np.split(store.mean, ends)]
    values = [
        (address, f"width {width}, scale {scale:.4g}, ‖E x‖² {length / (length + spread):.1%} of E‖x‖²")
        for address, width, scale, length, spread in zip(
            store.addresses, store.widths, store.scale, lengths, store.variance, strict=True
        )
    ]
    return [
        ("model", manifest.model or "not named"),
        ("rows", f"{store.rows:,} of {sum(store.widths):,} numbers, {manifest.dtype}"),
        ("files", f"{len(store.shards):,} of up to {manifest.shard_rows:,} rows"),
        ("size", f"{store.rows * sum(store.widths) * size / 1e9:,.3f} GB"),
        *values,
        ("digests", "every file has its SHA-256" if verify else "compared when rows are read; --verify compares now"),
    ]


def is_store(directory: Path | str) -> bool:
    """Whether a directory has the manifest of a store."""
    return (Path(directory) / MANIFEST).is_file()
