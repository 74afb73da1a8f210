"""Edits of a steering at some tokens only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jax_interp.core.errors import UserError
from jax_interp.steering.steer import Steer
from jax_interp.steering.vector import Steering
from jax_interp.surgery import Edit


def at_tokens(edits: Iterable[Edit], where: Bool[Array, "batch pos"] | None) -> tuple[Edit, ...]:
    """The same edits, at the tokens of `where` only. An edit with its own region acts where both allow it.

    Args:
      edits: edits of values `[batch, pos, ...]`.
      where: the tokens. None: all.
    """
    if where is None:
        return tuple(edits)

    def both(own: Array) -> Array:
        if own.ndim > where.ndim:
            return own & where.reshape(*where.shape, *(1,) * (own.ndim - where.ndim))
        return own & where

    found = []
    for one in edits:
        own = one.region.where
        region = dataclasses.replace(one.region, where=where if own is None else both(jnp.asarray(own)))
        found.append(dataclasses.replace(one, region=region))
    return tuple(found)


def check_every_row(steering: Steering) -> None:
    """Refuse a steering that belongs to the rows of one batch: rows are put into batches by their length.

    Raises:
      UserError: an edit has a mask `where=` with several rows, or `Steer` has a vector for each row.
    """
    edits = steering.edits(0.0)
    is_steer = lambda node: isinstance(node, Steer)
    for node in jax.tree.leaves(edits, is_leaf=is_steer):
        if isinstance(node, Steer) and jnp.ndim(node.vector) > 2 and jnp.shape(node.vector)[-3] > 1:
            raise UserError(
                f"a steering vector has shape {jnp.shape(node.vector)}, one for each row of a batch; here rows are put "
                "into batches by their length: measure each vector by itself"
            )
    for one in edits:
        shape = jnp.shape(one.region.where) if one.region.where is not None else ()
        if shape and shape[0] > 1:
            raise UserError(
                f"the edit at {one.address} has where= of shape {shape}, one entry for each row of a batch; here rows "
                "are put into batches by their length: give placement= in its place"
            )
