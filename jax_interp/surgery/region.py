"""Regions: the part of a value that an edit may change.

A region is data, so another index does not compile again. Its kind (an index, several indices, a span, a mask) is
structure. The edit sees the whole value. Its result is kept only inside the region; values outside keep their bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Int, Int32

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass

Index = int | slice | ArrayLike | Sequence[int] | Sequence[bool]
"""How a user writes `layer=`, `pos=`, `head=` or `feature=`."""

_FAR = np.iinfo(np.int32).max


class RegionError(UserError, IndexError):
    """A region is outside the value, or the value has no such axis."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Span:
    """The indices from `start` up to `stop`; negative ones count from the end."""

    start: Int32[Array, ""]
    stop: Int32[Array, ""]


Chosen = Int32[Array, "*index"] | Bool[Array, "axis"] | Span
"""The user's index as data. `index` makes it."""


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Region:
    """Which positions, heads and features of a value an edit changes. None means all.

    Attributes:
      pos: an index, a vector of indices, a boolean mask over the axis, or a `Span`.
      head: the same for the axis of heads.
      feature: the same for the last axis.
      where: a boolean mask over the whole value, or over its axes (batch, pos).
    """

    pos: Chosen | None = None
    head: Chosen | None = None
    feature: Chosen | None = None
    where: Bool[ArrayLike, "..."] | None = None

    @property
    def is_everything(self) -> bool:
        return self.pos is None and self.head is None and self.feature is None and self.where is None


def index(value: Index | Span | None) -> Chosen | None:
    """The user's index as data of one dtype: an int, a list and an array do not compile separately.

    Raises:
      RegionError: `value` is not an index, a list of indices, a slice without a step, or a boolean mask.
    """
    if value is None or isinstance(value, Span):
        return value
    if isinstance(value, slice):
        if value.step not in (None, 1):
            raise RegionError(f"a slice in a region cannot have a step, got {value}: give the indices as a list")
        stop = _FAR if value.stop is None else value.stop
        return Span(constant(0 if value.start is None else value.start, np.int32), constant(stop, np.int32))
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if array.dtype == bool:
        return constant(array, bool)
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.ndim > 1:
        raise RegionError(f"a region is an index, a list of them, a slice or a boolean mask, got {value!r}")
    return constant(array, np.int32)


def constant(value: Any, dtype: Any) -> Array:
    """`value` as a device array of exactly `dtype`. Its value stays known inside a traced function.

    A NumPy array or a Python scalar would be transferred to the device at every call of a jitted model.
    """
    if isinstance(value, jax.core.Tracer):
        return jax.lax.convert_element_type(value, dtype)
    with jax.ensure_compile_time_eval():
        return jnp.asarray(value, dtype)


Bounds = tuple[int | None, int | None]
"""(below, above): the valid indices are -below to above - 1. None: this bound is not known."""


@dataclasses.dataclass(frozen=True)
class Positions:
    """The positions of the tokens of a forward pass, and which tokens are real.

    A call may have only a part of a text: in generation, the prompt and then each new token. Every token of the text
    has a slot. Padding has slots too.

    Attributes:
      at: the absolute positions, [pos] or [batch, pos] (batch 1 if all rows have the same positions). None: 0..n-1.
      length: a negative position p means `length + p`. One number, or one number for each row, [batch, 1]. None: the
        last position of each row plus one.
      bounds: (below, above): the valid indices are -below to above - 1. None: not known.
      open_ended: whether a valid position may be missing from this call, because other calls have it.
      real: True for real tokens, False for padding. None: all tokens are real.
      real_keys: the same for the tokens along a `key` axis.
      first_slot: the slot of the first token of this call. None: the call has the whole text.
      slots: the number of slots of the whole text. None: the call has the whole text.
      ids: the token ids of this call, [batch, pos]. None: the inputs of the model are not tokens.
    """

    at: Int[ArrayLike, "..."] | None = None
    length: Int[ArrayLike, "..."] | int | None = None
    bounds: Bounds = (None, None)
    open_ended: bool = False
    real: Bool[Array, "batch pos"] | None = None
    real_keys: Bool[Array, "batch key"] | None = None
    first_slot: Int[Array, ""] | int | None = None
    slots: int | None = None
    ids: Int[Array, "batch pos"] | None = None


POSITIONS_FROM_ZERO = Positions()
"""The positions 0..n-1, without padding."""


def mask(
    region: Region,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    positions: Positions,
    what: str,
    note: Callable[[Chosen, Bounds, str], None] = lambda chosen, bounds, what: None,
) -> tuple[Bool[Array, "..."] | None, Bool[Array, ""] | None]:
    """Which entries of a value are in a region.

    Args:
      region: the region.
      shape: the shape of the value.
      axes: the names of its axes.
      positions: the positions of the forward pass.
      what: the name of the value in messages.
      note: called with each index, its bounds, and its name in messages.

    Returns:
      `(inside, valid)`. `inside` is a boolean array that can be broadcast to the value; None means the whole value.
      `valid` is a boolean scalar, False if a traced index is outside the value; None if no index is traced.

    Raises:
      RegionError: an index is known and outside the value.
    """
    inside, valid = [], []
    for name, chosen in (("pos", region.pos), ("head", region.head), ("feature", region.feature)):
        if chosen is None:
            continue
        axis = _axis(name, axes, what)
        n = shape[axis]
        stand = Positions(np.arange(n, dtype=np.int32), n, (n, n), open_ended=True)
        if name == "pos" and positions.at is not None:
            stand = positions
        note(chosen, stand.bounds, f"{name}= of {what}")
        part, ok = _select(chosen, stand, f"{name}= of {what}")
        # [n] or, for positions that differ by row, [batch, n]: put each dimension on its axis of the value
        places = [axes.index("batch"), axis] if part.ndim == 2 else [axis]
        sizes = dict(zip(places, part.shape, strict=True))
        inside.append(part.reshape([sizes.get(i, 1) for i in range(len(shape))]))
        valid += [] if ok is None else [ok]
    if region.where is not None:
        inside.append(_whole(region.where, shape, axes, positions, what))
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


def check_known(chosen: Chosen | None, bounds: Bounds, what: str) -> None:
    """Raise `RegionError` if an index, a span or a mask is known and outside `bounds` (see `Positions`)."""
    below, above = bounds
    if chosen is None:
        return
    if isinstance(chosen, Span):
        if not any(isinstance(end, jax.core.Tracer) for end in (chosen.start, chosen.stop)):
            with jax.ensure_compile_time_eval():
                outside = bool(_outside(chosen, bounds))
            if outside:
                stop = "" if int(chosen.stop) == _FAR else int(chosen.stop)
                takes = f"{0 if below is None else -below} to {'...' if above is None else above - 1}"
                raise RegionError(f"{int(chosen.start)}:{stop} is outside: {what} takes {takes}")
        return
    if chosen.dtype == bool:
        entries = chosen.shape[0] if chosen.ndim == 1 else -1
        if entries < (below or 0) or (above is not None and entries > above):
            takes = above if below in (None, above) else f"{below} to {above}"
            raise RegionError(f"the mask for {what} has shape {chosen.shape}, the axis has {takes}")
    elif not isinstance(chosen, jax.core.Tracer):
        for i in np.atleast_1d(np.asarray(chosen)).tolist():
            if (below is not None and i < -below) or (above is not None and i >= above):
                takes = f"{0 if below is None else -below} to {'...' if above is None else above - 1}"
                raise RegionError(f"{i} is outside: {what} takes {takes}")


def _outside(span: Span, bounds: Bounds) -> Bool[Array, ""]:
    """Whether a span is invalid: it ends before it begins, or lies beyond either end of the axis.

    Two empty spans are valid, because splitting an axis can produce them: n:n, and n: on an axis of length n.
    """
    (below, above), start, stop = bounds, jnp.asarray(span.start), jnp.asarray(span.stop)
    found = ((start < 0) == (stop < 0)) & (stop < start)
    if above is not None:
        found = found | (start > above) | ((start == above) & (stop > above) & (stop != _FAR))
    return found if below is None else found | (stop < -below)


def _select(chosen: Chosen, stand: Positions, what: str) -> tuple[Bool[Array, "..."], Bool[Array, ""] | None]:
    """Which positions are chosen, and whether all chosen indices are valid (None: this was checked already)."""
    here, length, (below, above) = jnp.asarray(stand.at), jnp.asarray(stand.length), stand.bounds
    check_known(chosen, stand.bounds, what)
    if isinstance(chosen, Span):
        start, stop = (jnp.where(end < 0, end + length, end) for end in (chosen.start, chosen.stop))
        traced = any(isinstance(end, jax.core.Tracer) for end in (chosen.start, chosen.stop))
        return (here >= start) & (here < stop), ~_outside(chosen, stand.bounds) if traced else None
    if chosen.dtype == bool:
        return jnp.asarray(chosen).at[here].get(mode="fill", fill_value=False), None
    valid = []
    if isinstance(chosen, jax.core.Tracer):
        valid += [] if below is None else [jnp.all(chosen >= -below)]
        valid += [] if above is None else [jnp.all(chosen < above)]
    several = chosen.reshape((1,) * here.ndim + (-1,))
    several = jnp.where(several < 0, several + (length[..., None] if length.ndim else length), several)
    same = here[..., None] == several
    if not stand.open_ended:  # a position that no row has is an error
        valid.append(jnp.all(jnp.any(same, axis=tuple(range(here.ndim)))))
    return jnp.any(same, axis=-1), jnp.all(jnp.stack(valid)) if valid else None


def _whole(
    where: Bool[ArrayLike, "..."], shape: tuple[int, ...], axes: tuple[str, ...], positions: Positions, what: str
) -> Bool[Array, "..."]:
    where = jnp.asarray(where)
    if where.dtype != bool:
        raise RegionError(f"where= of {what} is a boolean mask, got {where.dtype}")
    given = where.shape
    if where.ndim == 2 and len(shape) > 2 and {"batch", "pos"} <= set(axes):
        where = jnp.expand_dims(where, [i for i, name in enumerate(axes) if name not in ("batch", "pos")])
    where = of_this_call(where, shape, axes, positions, missing=False)
    fits = where.ndim == len(shape) and all(m in (1, n) for m, n in zip(where.shape, shape, strict=True))
    if not fits:
        raise RegionError(
            f"where= of {what} has shape {given}, the value has {shape} ({' '.join(axes)}): give a mask of the whole "
            "value, a mask over (batch, pos), or a mask over the rows alone, [batch, 1]"
        )
    return where


def of_this_call(
    array: Array, shape: tuple[int, ...], axes: tuple[str, ...], positions: Positions, missing: Any
) -> Array:
    """The part of an array that belongs to the tokens of this call.

    Args:
      array: an array for a whole text, or its beginning. It is broadcast from the right to a value of the text, slot by
        slot: padding has entries too.
      shape: the shape of the value in this call.
      axes: the names of its axes.
      positions: the positions of the forward pass.
      missing: the entry of a slot past the end of the array.
    """
    if positions.first_slot is None:
        return array
    for name in {"pos", "key"} & set(axes):
        n, axis = shape[axes.index(name)], axes.index(name) - len(axes) + array.ndim
        if axis < 0 or array.shape[axis] in (1, n if name == "key" else 1):
            continue
        begins = isinstance(positions.first_slot, int)
        if name == "pos" and begins and array.shape[axis] < n:
            continue  # it does not fit: the caller finds that when it broadcasts the array
        first = positions.first_slot if name == "pos" else 0  # the keys are the slots from the first on
        filling = [(0, n if i == axis else 0) for i in range(array.ndim)]
        array = jnp.pad(array, filling, constant_values=missing if name == "pos" else 0)
        array = jax.lax.dynamic_slice_in_dim(array, jnp.minimum(first, array.shape[axis] - n), n, axis)
    return array
