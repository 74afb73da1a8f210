"""`Grid`: a named value, and the axes along which it is cut into cells. `GRIDS` has those of TransformerLens."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jax_interp.circuits.sweeps.by_type import ByType
from jax_interp.core.errors import UserError
from jax_interp.surgery import Address, AddressError, Edit, Model, at, depth_of, survey
from jax_interp.surgery.address import suggest
from jax_interp.surgery.trace import NamedValue

AXES = ("layer", "pos", "head", "dest", "src", "feature")
"""What a value can be cut along: the layer; the position of the token (`dest` for an attention pattern); the head; the
key position of an attention pattern; the last axis of any other value."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """A named value and the axes along which a sweep cuts it. Along its other axes, a cell is the whole value.

    Args:
      name: with the axis "layer", the name of a value of the blocks, such as "resid_pre" or "mlp.post". Otherwise an
        address, such as "blocks.3.mlp.post" or "embed".
      axes: from `AXES`, in the order of the result. A position is a column of the tokens: padding has columns too, and
        there a cell changes nothing.

    Example:
        Grid("mlp.post", ("layer", "pos"))                   all neurons of a layer at one position
        Grid("blocks.3.mlp.post", ("feature",))              each neuron of layer 3, at all positions
    """

    name: str
    axes: tuple[str, ...]

    @property
    def address(self) -> str:
        """The address of the values of the whole grid."""
        return f"blocks.*.{self.name}" if "layer" in self.axes else self.name


GRIDS: dict[str, Grid] = {
    **{name: Grid(name, ("layer", "pos")) for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")},
    **{
        f"head_{title}{suffix}": Grid(f"attn.{name}", axes)
        for suffix, axes in (("", ("layer", "head")), ("_by_pos", ("layer", "pos", "head")))
        for title, name in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))
    },
    "pattern": Grid("attn.pattern", ("layer", "head")),
    "pattern_by_dest": Grid("attn.pattern", ("layer", "head", "dest")),
    "pattern_by_dest_src": Grid("attn.pattern", ("layer", "head", "dest", "src")),
}
"""The ready-made grids. In a model with grouped heads, `head` of keys and values counts key/value heads."""

EVERY: dict[str, tuple[str, ...]] = {
    "blocks": ("resid_pre", "attn_out", "mlp_out"),
    "heads": ("head_out", "head_q", "head_k", "head_v", "pattern"),
    "heads_by_pos": ("head_out_by_pos", "head_q_by_pos", "head_k_by_pos", "head_v_by_pos", "pattern_by_dest"),
}
"""Sets of grids that are looked at together."""


def grid_of(grid: str | Grid) -> Grid:
    """A ready-made grid by its name, or the grid itself. Raises `UserError` for a wrong one."""
    if isinstance(grid, str):
        if grid not in GRIDS:
            near = difflib.get_close_matches(grid, GRIDS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"there is no grid {grid!r}: {hint}choose from {', '.join(GRIDS)}, or give a Grid")
        return GRIDS[grid]
    unknown = [axis for axis in grid.axes if axis not in AXES]
    if unknown or len(set(grid.axes)) != len(grid.axes) or ("pos" in grid.axes and "dest" in grid.axes):
        raise UserError(f"the axes {grid.axes} of {grid.name!r} are not different ones of {', '.join(AXES)}")
    return grid


_named: ByType[dict[str, NamedValue]] = ByType(64)


def axes_in(
    model: Model, grid: Grid, tokens: Array, inputs: Mapping[str, Any], only: Mapping[str, Sequence[int]]
) -> dict[str, range | tuple[int, ...]]:
    """The entries of each axis of a grid in this model, for these tokens.

    Args:
      model: the model.
      grid: the grid.
      tokens: the tokens of a run.
      inputs: the keyword arguments of the model's call.
      only: for some of the axes, the entries that are wanted. Negative ones count from the end.

    Raises:
      AddressError: the model has no such value.
      UserError: the value has no such axis, or an entry is outside of it.
    """
    depth = depth_of(model)
    flags = tuple((name, value) for name, value in inputs.items() if isinstance(value, bool))
    named = _named.get((model, tokens, inputs), flags, lambda: survey(model)(tokens, **inputs))
    layers = Address.parse(grid.address).resolve(depth)
    name = Address.parse(grid.address).name
    full = name if layers is None else f"blocks.{layers[0]}.{name}"
    if full not in named:
        raise AddressError(f"{grid.address!r} names no value of this model.{suggest(grid.address, named)}")
    value, entries = named[full], {}
    for axis in grid.axes:
        n = depth if axis == "layer" else value.shape[_number(axis, value.axes, grid)]
        entries[axis] = range(n)
    for axis, wanted in only.items():
        if axis not in entries:
            raise UserError(f"the grid has the axes {', '.join(grid.axes) or 'none'}, not {axis!r}")
        n = len(entries[axis])
        chosen = [int(i) for i in wanted]
        if not chosen or any(not -n <= i < n for i in chosen):
            raise UserError(f"{axis}={list(wanted)}: give at least one of the entries 0 to {n - 1}")
        entries[axis] = tuple(i % n for i in chosen)
    return entries


def _number(axis: str, axes: tuple[str, ...], grid: Grid) -> int:
    named = {"dest": ("pos",), "src": ("key",), "head": ("head", "kv_head")}.get(axis, (axis,))
    if axis == "feature" and axes[-1] not in ("pos", "key", "head", "kv_head"):
        return len(axes) - 1
    for name in named:
        if name in axes:
            return axes.index(name)
    raise UserError(f"{grid.name!r} has the axes ({' '.join(axes)}): it cannot be cut along {axis!r}")


def edit_at(grid: Grid, fn: Any, columns: int, index: Mapping[str, jax.Array]) -> Edit:
    """The edit of one cell: `fn` in its region. `columns` is the number of tokens of a prompt, with padding."""
    position = index.get("pos", index.get("dest"))
    found = at(
        f"blocks.{grid.name}" if "layer" in grid.axes else grid.name,
        fn,
        layer=index.get("layer"),
        head=index.get("head"),
        feature=index.get("feature", index.get("src")),
        where=None if position is None else (jnp.arange(columns) == position)[None],
    )
    assert isinstance(found, Edit)
    return found
