"""Run a compiled program on many rows, some at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.processes import to_host
from jax_interp.training.meshes import row_shards
from jax_interp.training.sharding import shard_batch


def in_pieces(program: Callable[..., Any], rows: Sequence[np.ndarray], at_once: int) -> Any:
    """What a program gives for every row.

    Args:
      program: (*rows of a piece) -> a pytree of arrays with one entry for each row of the piece. Every piece has the
        same number of rows, so that a compiled program runs for all. The rows that fill up the last piece are copies,
        and what they give is left out.
      rows: arrays with one entry for each row, of which there is at least one.
      at_once: the number of rows in a piece. On the mesh that is active, the rows of a piece are split over its row
        axes, and their number is rounded up to a multiple of them.

    Returns:
      The pytree with all rows, as NumPy arrays on the host.
    """
    count, mesh = len(rows[0]), jax.sharding.get_mesh()
    ways = 1 if mesh.empty else row_shards(mesh)
    at_once = -(-max(1, min(at_once, count)) // ways) * ways
    found = []
    for first in range(0, count, at_once):
        part = [np.asarray(values[first : first + at_once]) for values in rows]
        full = [np.concatenate([v, np.repeat(v[-1:], at_once - len(v), 0)]) for v in part]
        placed = map(jnp.asarray, full) if mesh.empty else shard_batch(full, mesh)
        whole, rest = to_host(program(*placed)), len(part[0])
        found.append([leaf[:rest] for leaf in jax.tree.leaves(whole)])
    return jax.tree.unflatten(
        jax.tree.structure(whole), [np.concatenate(leaves) for leaves in zip(*found, strict=True)]
    )
