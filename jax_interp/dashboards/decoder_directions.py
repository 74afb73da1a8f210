"""What decoder directions write (tokens that they promote and suppress), and which directions are alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.dashboards.feature_data import Histogram, Neighbours, TokenEffects
from jax_interp.training.placement import automatic

Unembedding: TypeAlias = Callable[[Float[Array, "*unit d"]], Float[Array, "*unit vocab"]] | Float[Array, "d vocab"]
"""A matrix, or a function of directions. The weight of a final norm is part of it."""


def logit_lens(
    directions: Float[Array, "unit d"],
    chosen: Int[np.ndarray, " shown"] | None,
    unembed: Unembedding,
    n: int,
    bins: int,
    piece: int = 512,
) -> tuple[TokenEffects, TokenEffects, Histogram]:
    """The tokens whose logits change most if each direction goes straight to the unembedding.

    Args:
      directions: the decoder directions of all units.
      chosen: the units whose tokens are found. None: all.
      unembed: a matrix, or a function of directions.
      n: the number of tokens.
      bins: the number of bins of the histogram.
      piece: the number of directions whose effects are in memory at once.

    Returns:
      (promoted, suppressed, histogram of the effects on the whole vocabulary). Effects are differences from their mean
      over the vocabulary, since a constant added to every logit changes nothing. Of equal effects the token with the
      lower id comes first. Each unit has bins of equal width from its smallest to its largest effect.

    Raises:
      UserError: an effect is not finite.
    """
    if jax.tree_util.all_leaves([unembed]) and callable(unembed):  # a plain function
        unembed = jax.tree_util.Partial(unembed)
    chosen = np.arange(len(directions)) if chosen is None else chosen
    parts = [to_host(_lens(directions, part, unembed, n, bins)) for part in _pieces(chosen, piece)]
    rows = [np.concatenate(column)[: len(chosen)] for column in zip(*parts)]
    if not all(np.isfinite(column).all() for column in rows):
        raise UserError("the effects of some directions on the logits are not finite: try float32")
    most, high, least, low, edges, counts = rows
    return TokenEffects(most, high), TokenEffects(least, low), Histogram(edges, counts)


@functools.partial(jax.jit, static_argnums=(3, 4))
@automatic
def _lens(
    directions: Float[Array, "unit d"], chosen: Int[Array, " shown"], unembed: Unembedding, n: int, bins: int
) -> tuple[Array, ...]:
    directions = directions[chosen]
    effects = (unembed(directions) if callable(unembed) else directions @ unembed).astype(jnp.float32)
    effects = effects - jnp.mean(effects, axis=1, keepdims=True)
    n = min(n, effects.shape[1])
    high, most = jax.lax.top_k(effects, n)
    low, least = jax.lax.top_k(-effects, n)
    first, last = jnp.min(effects, axis=1), jnp.max(effects, axis=1)
    last = jnp.where(last > first, last, first + 1)
    steps = jnp.arange(bins + 1, dtype=jnp.float32) / bins
    edges = first[:, None] + (last - first)[:, None] * steps[None]
    edges = edges.at[:, -1].set(last)
    place = jnp.clip(
        jnp.floor((effects - first[:, None]) / (last - first)[:, None] * bins).astype(jnp.int32), 0, bins - 1
    )
    unit = jnp.arange(len(effects))[:, None]
    # A quotient can round to the other side of an edge.
    place = place - (effects < edges[unit, place]).astype(jnp.int32)
    place = place + ((effects >= edges[unit, place + 1]) & (place < bins - 1)).astype(jnp.int32)
    counts = jnp.zeros((len(effects), bins), jnp.int32).at[unit, place].add(1)
    return most, high, least, -low, edges, counts


def decoder_neighbours(
    directions: Float[Array, "unit d"], chosen: Int[np.ndarray, " shown"] | None, n: int, piece: int = 512
) -> Neighbours:
    """The units whose decoder directions have the largest cosine with that of each unit.

    Args:
      directions: the decoder directions of all units.
      chosen: the units for which neighbours are found. None: all.
      n: the number of neighbours.
      piece: the number of units whose cosines are in memory at once.

    Returns:
      The neighbours among all units, without the unit itself. A direction of length 0 has cosine 0 with all.
    """
    chosen = np.arange(len(directions)) if chosen is None else chosen
    n = min(n, len(directions) - 1)
    parts = [to_host(_nearest(directions, part, n)) for part in _pieces(chosen, piece)]
    values, found = (np.concatenate(column)[: len(chosen)] for column in zip(*parts))
    return Neighbours(found, values, "cosine of decoder directions")


@functools.partial(jax.jit, static_argnums=2)
@automatic
def _nearest(directions: Float[Array, "unit d"], chosen: Int[Array, " shown"], n: int) -> tuple[Array, Array]:
    unit = directions.astype(jnp.float32)
    norm = jnp.linalg.norm(unit, axis=1, keepdims=True)
    unit = unit / jnp.where(norm > 0, norm, 1.0)
    cosines = jnp.matmul(unit[chosen], unit.T, precision=jax.lax.Precision.HIGHEST)
    cosines = jnp.where(jnp.arange(len(unit))[None] == chosen[:, None], -jnp.inf, cosines)
    values, units = jax.lax.top_k(cosines, n)
    return values, units


def _pieces(units: Int[np.ndarray, " unit"], size: int) -> Iterator[Int[Array, " piece"]]:
    """Pieces of `size` units. The last one is filled with unit 0, so that one program runs for all."""
    size = min(size, max(len(units), 1))
    for first in range(0, len(units), size):
        part = units[first : first + size]
        yield jnp.asarray(np.pad(part, (0, size - len(part))), jnp.int32)
