"""A store of activations that another program computed, so that dictionaries train and are measured on them here.

    store = import_activations("acts/", dataset_blocks("cached_activations/"), "blocks.5.resid_post", model="gpt2")
    store = import_activations("acts/", array_blocks(tensors), "blocks.5.resid_post")
    sae = train_from_store(variants.topk("blocks.5.resid_post", k=32), store)
    evaluate_rows(sae, store.in_order(4096))

The rows are copied once, with the guarantees of a store that was written here: digests, shapes and dtypes, no number
that is not finite or beyond the range of the dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from jax_interp.core.atomic_write import make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.locks import locked
from jax_interp.core.processes import barrier, is_first_process
from jax_interp.data.activation_manifest import MANIFEST, StoreManifest
from jax_interp.data.activation_shards import LAYOUT, StoreLayout, finish, stored, write_shard
from jax_interp.data.activation_store import ActivationStore, open_activation_store
from jax_interp.data.foreign_activations import Block
from jax_interp.data.harvest import Addresses

IMPORTED = "imported"
"""What the manifest of an imported store says in place of fingerprints of the model's weights and tokens."""


def import_activations(
    directory: Path | str,
    blocks: Iterable[Block],
    addresses: Addresses,
    *,
    widths: Sequence[int] | None = None,
    model: str = "",
    layout: StoreLayout = LAYOUT,
) -> ActivationStore:
    """Make a store of rows that another program computed.

    Args:
      directory: the directory of the store. It is created if it is missing. If an import was stopped, repeat it: it
        begins again.
      blocks: arrays [row, d] (foreign_activations.py). Several values are side by side in the last axis. They are read
        once, and only one block and one file of rows are in memory.
      addresses: the address that this package gives the value, or several. Trainers compare it with their config.
      widths: the width of each value, if there are several.
      model: the name of the model, written to the manifest.
      layout: the size and dtype of the files. bfloat16 has a larger range than float16: give float32 for long values.

    Returns:
      The complete store.

    Raises:
      UserError: there are no rows; blocks have other widths; a number is not finite or exceeds the dtype; all values
        are zero; or the directory contains a store already.
    """
    directory = Path(directory)
    addresses = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    make_directory(directory)
    with locked(directory / ".lock", f"the store {directory}"):
        if is_first_process():
            _write(directory, blocks, addresses, widths, model, layout)
        barrier(f"{directory} is imported")
    return open_activation_store(directory)


def _write(
    directory: Path,
    blocks: Iterable[Block],
    addresses: tuple[str, ...],
    widths: Sequence[int] | None,
    model: str,
    layout: StoreLayout,
) -> None:
    if (directory / MANIFEST).exists():
        raise UserError(f"{directory} holds a store already: choose another directory, or remove it")
    count, total, found = 0, 0, None
    for rows in _shards(blocks, layout.shard_rows):
        found = _widths(rows.shape[1], addresses, widths) if found is None else found
        write_shard(directory, count, stored(rows, layout.dtype, count))
        count, total = count + 1, total + len(rows)
    if found is None:
        raise UserError("there are no rows to import: give blocks [row, d] that have not been used up")
    of_store = {"dtype": layout.dtype, "rows": total, "shard_rows": layout.shard_rows}
    manifest = StoreManifest(model, addresses, found, weights=IMPORTED, tokens=IMPORTED, **of_store)
    finish(directory, manifest, count)


def _shards(blocks: Iterable[Block], size: int) -> Iterator[np.ndarray]:
    """The same rows in arrays of `size` rows; the last one may be shorter."""
    parts: list[np.ndarray] = []
    width, waiting = None, 0
    for number, block in enumerate(blocks):
        if block.ndim != 2 or (width is not None and block.shape[1] != width):
            raise UserError(
                f"block {number} has shape {list(block.shape)}; blocks are [row, {'d' if width is None else width}]"
            )
        width = block.shape[1]
        while len(block):
            taken, block = block[: size - waiting], block[size - waiting :]
            parts.append(taken)
            waiting += len(taken)
            if waiting == size:
                yield np.concatenate(parts)
                parts, waiting = [], 0
    if parts:
        yield np.concatenate(parts)


def _widths(width: int, addresses: Sequence[str], widths: Sequence[int] | None) -> tuple[int, ...]:
    if widths is None and len(addresses) == 1:
        return (width,)
    if widths is None or len(widths) != len(addresses) or sum(widths) != width:
        given = "no widths" if widths is None else f"the widths {list(widths)}"
        raise UserError(f"a row has {width} numbers for {len(addresses)} values, and there are {given}: they must fit")
    return tuple(widths)
