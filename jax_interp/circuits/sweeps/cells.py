"""The cells of a sweep: the points of a grid, or the entries of a list, at which a function is evaluated."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Axis:
    """The entries of one axis, with labels of your own.

    Args:
      values: a sequence of numbers, an array, or a pytree of arrays, with a leading axis of entries.
      labels: one for each entry. None: the numbers themselves, or 0, 1, 2, ... if an entry is not a number.
    """

    values: Any
    labels: Sequence[Any] | None = None


Over = Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""A grid: axis name -> entries. Or a list of cells: for each cell, name -> value."""


@dataclasses.dataclass(frozen=True)
class Cells:
    """All cells of a sweep, in order.

    Attributes:
      axes: for each name, the entries as a pytree with leaves [entry, ...].
      index: for each name, the number of the entry of each cell, [cell].
      labels: the axes of the result, with their labels.
      shape: the lengths of these axes.
    """

    axes: dict[str, PyTree]
    index: dict[str, np.ndarray]
    labels: dict[str, tuple[Any, ...]]
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=int))

    def groups(self, names: Sequence[str]) -> list[np.ndarray]:
        """The numbers of the cells, in groups in which each of these axes has one value."""
        if not names:
            return [np.arange(self.count)]
        keys = [self._numbers(name)[self.index[name]] for name in names]
        found: dict[tuple, list[int]] = {}
        for cell, key in enumerate(zip(*(column.tolist() for column in keys))):
            found.setdefault(key, []).append(cell)
        return [np.asarray(cells) for cells in found.values()]

    def _numbers(self, name: str) -> np.ndarray:
        values = self.axes[name]
        if not jax.tree_util.all_leaves([values]) or jnp.ndim(values) != 1:
            raise UserError(f"the axis {name!r} cannot be looped over: its entries are not numbers")
        return np.asarray(values)


def cells_of(over: Over) -> Cells:
    """The cells of a grid or a list.

    Raises:
      UserError: there is no cell, an axis is empty or has entries that are not numbers or arrays, or the cells of a
        list do not have the same names and shapes.
    """
    if isinstance(over, Mapping):
        return _grid(over)
    cells = list(over)
    if not cells or not all(isinstance(cell, Mapping) for cell in cells):
        raise UserError("a sweep is over a dict of axes, or over a list of dicts with one value for each name")
    names = list(cells[0])
    if any(list(cell) != names for cell in cells):
        raise UserError(f"the cells of a list need the same names in the same order; the first has {names}")
    axes = {}
    for name in names:
        try:
            axes[name] = jax.tree.map(lambda *leaves: jnp.stack([_array(leaf) for leaf in leaves]),
                                      *[cell[name] for cell in cells])  # fmt: skip
        except (TypeError, ValueError) as error:
            raise UserError(f"the values of {name!r} are not numbers or arrays of one shape: {error}") from error
    index = dict.fromkeys(names, np.arange(len(cells)))
    return Cells(axes, index, {"cell": tuple(map(_label, cells))}, (len(cells),))


def _grid(over: Mapping[str, Any]) -> Cells:
    if not over:
        raise UserError("there is no axis to sweep over")
    axes, labels = {}, {}
    for name, given in over.items():
        axis = given if isinstance(given, Axis) else Axis(given)
        try:
            values = _entries(axis.values)
        except (TypeError, ValueError) as error:
            raise UserError(f"the axis {name!r} has entries that are not numbers or arrays: {error}") from error
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(values)}
        if len(sizes) != 1 or 0 in sizes:
            raise UserError(f"the axis {name!r} has no entries, or arrays of different lengths {sorted(sizes)}")
        (n,) = sizes
        plain = jax.tree_util.all_leaves([values]) and values.ndim == 1 and not _is_key(values)
        labels[name] = tuple(np.asarray(values).tolist() if plain else range(n)) if axis.labels is None else axis.labels
        if len(labels[name]) != n:
            raise UserError(f"the axis {name!r} has {n} entries and {len(labels[name])} labels")
        axes[name] = values
    shape = tuple(len(entries) for entries in labels.values())
    where = np.indices(shape).reshape(len(shape), -1)
    return Cells(axes, dict(zip(axes, where)), {name: tuple(entries) for name, entries in labels.items()}, shape)


def _entries(values: Any) -> PyTree:
    """The entries of an axis as a pytree of arrays. A sequence of numbers is one array."""
    if isinstance(values, (range, list, tuple)) and not any(map(_has_arrays, values)):
        return _array(np.asarray(values))
    if isinstance(values, (list, tuple)):
        return jax.tree.map(lambda *leaves: jnp.stack([_array(leaf) for leaf in leaves]), *values)
    return jax.tree.map(_array, values)


def _has_arrays(entry: Any) -> bool:
    return not isinstance(entry, (bool, int, float, np.number, np.bool_, str))


def _array(leaf: Any) -> jax.Array:
    """A device array. Integers are int32, as everywhere in surgery."""
    if isinstance(leaf, jax.Array):
        return leaf
    array = np.asarray(leaf)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"got {array.dtype}")
    return jnp.asarray(array, np.int32) if array.dtype.kind in "iu" else jnp.asarray(array)


def _is_key(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _label(cell: Mapping[str, Any]) -> str:
    shown = lambda value: str(np.asarray(value)) if np.ndim(value) == 0 else "[...]"
    return ", ".join(f"{name} {shown(value)}" for name, value in itertools.islice(cell.items(), 6))
