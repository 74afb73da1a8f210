"""Regions: the part of a value that an edit may change.

A region is data. Its kind (an index, several, a span, a mask) is structure; which index it is never
recompiles. The edit sees the whole value; what it returns is kept inside the region only, so values
outside keep their bits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jax_interp.errors import UserError

_FAR = np.iinfo(np.int32).max


class RegionError(UserError, IndexError):
    """A region that lies outside the value, or names an axis that the value lacks."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Span:
    """The indices from `start` up to `stop`; negative ones count from the end."""

    start: Any  # int32 scalars
    stop: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Region:
    """Which positions, heads and features of a value; None is all of them.

    Each of `pos`, `head`, `feature` is an index, a vector of indices, a boolean mask over the axis or a `Span`.
    `where` is a boolean mask over the whole value, or over its (batch, pos).
    """

    pos: Any = None
    head: Any = None
    feature: Any = None
    where: Any = None

    @property
    def is_everything(self) -> bool:
        return self.pos is None and self.head is None and self.feature is None and self.where is None


def index(value: Any) -> Any:
    """What the user wrote as an index, as data of one dtype, so that no spelling of it recompiles."""
    if value is None or isinstance(value, Span):
        return value
    if isinstance(value, slice):
        if value.step not in (None, 1):
            raise RegionError(f"a region's slice has no step, got {value}: give the indices as a list")
        stop = _FAR if value.stop is None else value.stop
        return Span(constant(value.start or 0, np.int32), constant(stop, np.int32))
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.dtype == bool:
        return constant(array, bool)
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.ndim > 1:
        raise RegionError(f"a region is an index, a list of them, a slice or a boolean mask, got {value!r}")
    return constant(array, np.int32)


def constant(value: Any, dtype: Any) -> Array:
    """`value` as a device array of exactly `dtype`; still a known value where this runs inside a traced function.

    A NumPy array or a Python scalar would do, but each costs a transfer every time that a jitted model is called.
    """
    if isinstance(value, jax.core.Tracer):
        return jax.lax.convert_element_type(value, dtype)
    with jax.ensure_compile_time_eval():
        return jnp.asarray(value, dtype)


@dataclasses.dataclass(frozen=True)
class Positions:
    """Where the tokens of a forward pass stand.

    `at` are the absolute positions ([pos], or [batch, pos] with batch 1 where rows agree), None for 0..n-1; negative
    ones count from `length`. `open_ended` where a position that is not here may come later, as in generation.
    """

    at: Any = None
    length: Any = None
    open_ended: bool = False


def mask(region: Region, shape: tuple[int, ...], axes: tuple[str, ...], positions: Positions, what: str):
    """`(inside, valid)` for a value of `shape` with named `axes`.

    `inside` is a boolean broadcastable to the value, or None for everything. `valid` is a scalar boolean
    that is False where an index that is data lies outside, or None where there is nothing to doubt.
    Raises `RegionError` where the index is known and lies outside.
    """
    inside, valid = [], []
    for name, chosen in (("pos", region.pos), ("head", region.head), ("feature", region.feature)):
        if chosen is None:
            continue
        axis = _axis(name, axes, what)
        absolute = name == "pos" and positions.at is not None
        coordinates = positions.at if absolute else np.arange(shape[axis], dtype=np.int32)
        size = positions.length if absolute else shape[axis]
        bounded = not (absolute and positions.open_ended)
        part, ok = _select(chosen, coordinates, size, f"{name}= of {what}", bounded)
        # [n] or, for positions that differ by row, [batch, n]: put each dimension on its axis of the value
        places = [axes.index("batch"), axis] if part.ndim == 2 else [axis]
        sizes = dict(zip(places, part.shape, strict=True))
        inside.append(part.reshape([sizes.get(i, 1) for i in range(len(shape))]))
        valid += [] if ok is None else [ok]
    if region.where is not None:
        inside.append(_whole(region.where, shape, what))
    both = inside[0] if inside else None
    for part in inside[1:]:
        both = both & part
    return both, jnp.all(jnp.stack(valid)) if valid else None


def _axis(name: str, axes: tuple[str, ...], what: str) -> int:
    if name == "feature":
        return len(axes) - 1
    for axis in (name, f"kv_{name}"):
        if axis in axes:
            return axes.index(axis)
    raise RegionError(f"{what} has axes ({' '.join(axes)}): there is no {name!r} to choose from")


def _select(chosen, coordinates, size: int, what: str, bounded: bool):
    """Which `coordinates` are chosen, and whether the choice lies inside (None: known to)."""
    if isinstance(chosen, Span):
        start, stop = (jnp.where(end < 0, end + size, end) for end in (chosen.start, chosen.stop))
        return (coordinates >= start) & (coordinates < stop), None
    if chosen.dtype == bool:
        if chosen.ndim != 1 or (bounded and chosen.shape[0] != size):
            raise RegionError(f"the mask for {what} has shape {chosen.shape}, the axis has {size}")
        return jnp.asarray(chosen).at[coordinates].get(mode="fill", fill_value=False), None
    valid = None
    if bounded:
        if not isinstance(chosen, jax.core.Tracer):
            outside = [int(i) for i in np.atleast_1d(np.asarray(chosen)) if not -size <= i < size]
            if outside:
                raise RegionError(f"{outside[0]} is outside: {what} takes {-size} to {size - 1}")
        else:
            valid = jnp.all((chosen >= -size) & (chosen < size))
    chosen = jnp.where(chosen < 0, chosen + size, chosen)
    coordinates = jnp.asarray(coordinates)
    if chosen.ndim == 0:
        return coordinates == chosen, valid
    return jnp.any(coordinates[..., None] == chosen.reshape((1,) * coordinates.ndim + (-1,)), axis=-1), valid


def _whole(where: Bool[Array, "..."], shape: tuple[int, ...], what: str) -> Bool[Array, "..."]:
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise RegionError(f"where= of {what} is a boolean mask, got {where.dtype}")
    given = where.shape
    if where.ndim == 2 and len(shape) > 2:
        where = where.reshape(where.shape + (1,) * (len(shape) - 2))
    fits = where.ndim == len(shape) and all(m in (1, n) for m, n in zip(where.shape, shape, strict=True))
    if not fits:
        raise RegionError(
            f"where= of {what} has shape {given}, the value has {shape}: give the whole mask, or one over (batch, pos)"
        )
    return where
