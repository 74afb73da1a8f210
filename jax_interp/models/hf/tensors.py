"""How a parameter is stored in a checkpoint: its name, and whether it is transposed, fused, or split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Columns:
    """The columns of a fused tensor that contain one parameter.

    The tensor has `groups` groups of `total` columns. In each group, the parameter has `size` columns, beginning at
    `start`.
    """

    start: int
    size: int
    total: int
    groups: int = 1


@dataclass(frozen=True)
class TensorSpec:
    """How a parameter is stored in a checkpoint."""

    name: str
    """The name of the stored tensor, with `{}` for the layer."""
    transposed: bool = False
    """The tensor is stored as `[out, in]`, as in torch's Linear."""
    columns: Columns | None = None
    """If several parameters are fused in one tensor: the columns of this parameter (last axis, after transposing)."""
    heads: tuple[Literal["in", "out"], int] | None = None
    """(axis, number of heads): the axis is split into heads, which are the tensor's first axis (TransformerLens)."""
    experts: bool = False
    """The first axis of the parameter is the expert. Each expert is a separate tensor; `name` has a second `{}`."""

    def names(self, layer: int, parameter: tuple[int, ...]) -> list[str]:
        """The names of the stored tensors of the parameter in one layer: one name, or one name for each expert."""
        return [self.name.format(layer, e) for e in range(parameter[0])] if self.experts else [self.name.format(layer)]

    def shape(self, parameter: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each stored tensor, from the shape of the parameter."""
        shape = parameter[1:] if self.experts else parameter
        if self.columns is not None:
            shape = (*shape[:-1], self.columns.total * self.columns.groups)
        if self.heads is not None:
            return self._by_heads(np.empty(shape, bool)).shape
        return shape[::-1] if self.transposed else shape

    def window(self, parameter: tuple[int, ...]) -> tuple[slice, ...]:
        """The part of a stored tensor that must be read."""
        whole = tuple(slice(0, n) for n in self.shape(parameter))
        if self.columns is None or self.columns.groups > 1:
            return whole
        run = slice(self.columns.start, self.columns.start + self.columns.size)
        return (run, *whole[1:]) if self.transposed else (*whole[:-1], run)

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """The parameter, from the part of the stored tensor that `window` selects."""
        if self.heads is not None:
            return self._from_heads(stored)
        array = stored.T if self.transposed else stored
        if self.columns is not None and self.columns.groups > 1:
            runs = array.reshape(*array.shape[:-1], self.columns.groups, self.columns.total)
            part = runs[..., self.columns.start : self.columns.start + self.columns.size]
            array = part.reshape(*array.shape[:-1], -1)
        return array

    def pack(self, parameter: np.ndarray, into: np.ndarray) -> None:
        """Write the parameter to its place in a stored tensor. This is the inverse of `unpack`."""
        if self.heads is not None:
            into[...] = self._by_heads(parameter)
            return
        view = into.T if self.transposed else into
        if self.columns is None:
            view[...] = parameter
            return
        start, size, total, groups = (getattr(self.columns, n) for n in ("start", "size", "total", "groups"))
        for g in range(groups):
            view[..., g * total + start : g * total + start + size] = parameter[..., g * size : (g + 1) * size]

    def _by_heads(self, parameter: np.ndarray) -> np.ndarray:
        assert self.heads is not None
        side, n = self.heads
        if parameter.ndim == 1 or side == "in":
            return parameter.reshape(n, -1, *parameter.shape[1:])
        return np.moveaxis(parameter.reshape(parameter.shape[0], n, -1), 1, 0)

    def _from_heads(self, stored: np.ndarray) -> np.ndarray:
        assert self.heads is not None
        if stored.ndim == 2 or self.heads[0] == "in":
            return stored.reshape(-1, *stored.shape[2:])
        return np.moveaxis(stored, 0, 1).reshape(stored.shape[1], -1)
