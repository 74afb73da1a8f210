"""Evaluate an edit in every cell of a grid. Patching, ablation and steering are thin layers over `intervene`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jax_interp.circuits.contrast import Contrast, Direction, baseline, inputs_of
from jax_interp.circuits.sweeps.base_run import BaseRun, base_run
from jax_interp.circuits.sweeps.cells import Axis
from jax_interp.circuits.sweeps.effects import Effects
from jax_interp.circuits.sweeps.grids import Grid, axes_in, edit_at
from jax_interp.circuits.sweeps.sweep import Pieces, sweep
from jax_interp.core.labelled import Labelled
from jax_interp.core.processes import on_host
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Address, Model, depth_of

_WORTH_A_PROGRAM = 2e11
"""The operations that a program must save to be worth its compilation, which takes a second or two."""
_BANDS = 4


@dataclasses.dataclass(frozen=True)
class Intervention:
    """What a sweep does in every cell.

    Args:
      grid: the value, and how it is cut.
      fn: the edit, a callable pytree, with `Each` if it has values per layer; or data that `build` makes it from.
      build: `build(fn, **entries)` returns the edit of a cell, from the entries of the axes in `more`.
      more: further axes, such as vectors and coefficients.
      only: for some axes of the grid, the entries that are swept.
      first: the first column of the tokens that any cell changes, if this is known.
      by_token: whether the edit changes each token without looking at the others. Only then can earlier tokens be left
        out of a run.
    """

    grid: Grid
    fn: Any
    build: Callable[..., Any] = lambda fn: fn
    more: Mapping[str, Axis] = dataclasses.field(default_factory=dict)
    only: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    first: int = 0
    by_token: bool = False


@register_dataclass
@dataclasses.dataclass(frozen=True)
class _Cell:
    """The function that is swept: the metric of each prompt under the edit of one cell."""

    model: Model
    contrast: Contrast
    base: BaseRun
    fn: PyTree
    build: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    grid: Grid = dataclasses.field(metadata={"static": True})
    first: int = dataclasses.field(metadata={"static": True})

    def __call__(self, **index: Array) -> Float[Array, " prompt"]:
        more = {name: index.pop(name) for name in list(index) if name not in self.grid.axes}
        found = edit_at(self.grid, self.build(self.fn, **more), self.base.tokens.shape[1], index)
        return self.base.changed(self.model, self.contrast, (found,), self._layer(index), self.first)

    def _layer(self, index: Mapping[str, Array]) -> Array | None:
        if "layer" in self.grid.axes:
            return index["layer"]
        layers = Address.parse(self.grid.name).resolve(depth_of(self.model))
        return None if layers is None else jnp.int32(layers[0])


def intervene(
    model: Model,
    contrast: Contrast,
    direction: Direction,
    intervention: Intervention,
    *,
    pieces: Pieces = Pieces(),
) -> Effects:
    """Run one set of prompts with an edit in every cell of a grid.

    Args:
      model: any model, under surgery or not.
      contrast: the prompts and the metric.
      direction: denoise: the corrupted prompts are run. noise: the clean prompts are run.
      intervention: the edit and the grid.
      pieces: memory and progress of the sweep.

    Returns:
      The metric in every cell, with the axes of the grid and of `more`, and "prompt".

    Raises:
      AddressError: the model has no such value.
      UserError: the value cannot be cut in this way, or one cell does not fit in the memory budget.
    """
    _, tokens = contrast.runs(direction)
    grid, first = intervention.grid, intervention.first
    over: dict[str, Any] = dict(axes_in(model, grid, tokens, inputs_of(model, contrast), intervention.only))
    over = {**intervention.more, **over}
    base = base_run(model, contrast, tokens, reuse_tokens=intervention.by_token)
    first = 0 if base.cache is None else min(first, tokens.shape[1] - 1)
    position = next((axis for axis in ("pos", "dest") if axis in grid.axes), None)
    cells = int(np.prod([len(axis) for axis in map(_entries, over.values())]))
    parts = []
    for start, band in _bands(model, base, () if position is None else over[position], cells, first):
        at = _Cell(model, contrast, base, intervention.fn, intervention.build, grid, start)
        part = over if position is None or band is None else {**over, position: band}
        parts.append(sweep(at, part, name="metric", pieces=pieces))
    values = parts[0] if len(parts) == 1 else _joined(parts, str(position))
    clean, corrupted = (on_host(each) for each in baseline(model, contrast))
    return Effects(values, clean, corrupted, direction)


def _entries(axis: Any) -> Sequence[Any]:
    return jax.tree.leaves(axis.values)[0] if isinstance(axis, Axis) else axis


def _bands(
    model: Model, base: BaseRun, positions: Sequence[int], cells: int, first: int
) -> list[tuple[int, Sequence[int] | None]]:
    """[(the first column that is run, the positions of this band)]: bands of neighbouring positions.

    The cells of a band share a program, in which the tokens before the band are not run again.
    """
    if base.cache is None or not len(positions):
        return [(first, None)]
    columns, n = base.tokens.shape[1], len(positions)
    weights = sum(leaf.size for leaf in jax.tree.leaves(getattr(model, "blocks", ())))
    saved = weights * base.tokens.size * cells * (1 - sum(positions) / n / columns) / 2
    bands = int(min(_BANDS, n, 1 + saved // _WORTH_A_PROGRAM))
    cut = [sorted(positions)[i * n // bands : (i + 1) * n // bands] for i in range(bands)]
    return [(max(first, min(band)), band) for band in cut]


def _joined(parts: Sequence[Labelled], axis: str) -> Labelled:
    """Parts of one result, put together along an axis."""
    labels = {**parts[0].axes, axis: tuple(label for part in parts for label in part.axes[axis])}
    return Labelled(np.concatenate([part.values for part in parts], axis=parts[0].axis(axis)), labels, parts[0].name)
