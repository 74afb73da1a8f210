"""Gradient accumulation: a mean over the rows of a batch, computed for a part of the rows at a time.

    loss, gradient = mean_over_parts(lambda tokens: jax.value_and_grad(loss_of)(model, tokens), tokens, parts=4)

The activations of one part are in memory, and not those of the whole batch. The result is that of the whole batch up to
rounding, if the function is a mean over rows, like the loss of a language model or an error of reconstruction. It is
another number if the rows of a batch act on each other, as in a selection of the largest values of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree
from jax_interp.training.meshes import row_shards

Tree = TypeVar("Tree", bound=PyTree)


def check_parts(rows: int, parts: int) -> None:
    """Raises UserError if a batch cannot be cut into equal parts, each of which the mesh can split by rows."""
    ways = row_shards(jax.sharding.get_abstract_mesh())
    if parts < 1 or rows % (parts * ways):
        split = f", each split over {ways} devices" if ways > 1 else ""
        raise UserError(f"accumulate={parts}: a batch of {rows} rows cannot be cut into {parts} equal parts{split}")


def split_parts(batch: Tree, parts: int) -> Tree:
    """Each array `[row, ...]` as `[part, row / parts, ...]`. Part i has the rows i, i + parts, i + 2 parts and so on.

    On a mesh each device keeps its own rows: a part has some rows of every device.
    """

    def of_leaf(x: Any) -> Any:
        return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

    return jax.tree.map(of_leaf, batch)


def join_parts(tree: Tree) -> Tree:
    """The inverse of `split_parts`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def mean_over_parts(function: Callable[[Any], Tree], batch: PyTree, parts: int) -> Tree:
    """The mean of `function(part)` over equal parts of a batch, computed one after the other.

    Args:
      function: maps some rows to a pytree of floats: a loss and its gradient, for example. It is a mean over rows.
      batch: a pytree of arrays `[row, ...]`.
      parts: the number of parts. 1: `function(batch)`.

    Returns:
      The mean, with the dtypes of `function`.

    Raises:
      UserError: the rows cannot be divided equally.

    Example:
        of_part = lambda tokens: jax.value_and_grad(next_token_loss)(model, tokens)
        loss, gradient = mean_over_parts(of_part, tokens, parts=8)
    """
    check_parts(jax.tree.leaves(batch)[0].shape[0], parts)
    if parts == 1:
        return function(batch)
    pieces = split_parts(batch, parts)
    first = function(jax.tree.map(lambda x: x[0], pieces))
    add = lambda total, piece: (jax.tree.map(jnp.add, total, function(piece)), None)
    total, _ = jax.lax.scan(add, first, jax.tree.map(lambda x: x[1:], pieces))
    return jax.tree.map(lambda x: x / jnp.asarray(parts, x.dtype), total)
