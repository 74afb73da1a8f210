"""What a family of models is: which configs it has, and where its tensors are. Each family's file makes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes


@dataclass(frozen=True)
class Columns:
    """Which columns of a fused tensor a parameter is: `size` from `start` on in each of `groups` runs of `total`."""

    start: int
    size: int
    total: int
    groups: int = 1


@dataclass(frozen=True)
class Tensor:
    """Where a parameter is found in a checkpoint: in the tensor `name`, with `{}` for the layer."""

    name: str
    transposed: bool = False
    """Stored `[out, in]`, as torch's Linear does."""
    columns: Columns | None = None
    """Where several parameters are fused in one tensor, which columns (of the last axis, after transposing) are it."""
    heads: tuple[Literal["in", "out"], int] | None = None
    """That axis is cut into so many heads, which are the stored tensor's first axis (TransformerLens)."""
    experts: bool = False
    """The parameter's first axis counts experts, each stored by itself under a name with a second `{}`."""

    def names(self, layer: int, parameter: tuple[int, ...]) -> list[str]:
        """The stored tensors of one layer's parameter: one, or one for each expert."""
        return [self.name.format(layer, e) for e in range(parameter[0])] if self.experts else [self.name.format(layer)]

    def shape(self, parameter: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of each stored tensor, by the parameter's."""
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
        """The parameter, of what `window` gave."""
        if self.heads is not None:
            return self._from_heads(stored)
        array = stored.T if self.transposed else stored
        if self.columns is not None and self.columns.groups > 1:
            runs = array.reshape(*array.shape[:-1], self.columns.groups, self.columns.total)
            part = runs[..., self.columns.start : self.columns.start + self.columns.size]
            array = part.reshape(*array.shape[:-1], -1)
        return array

    def pack(self, parameter: np.ndarray, into: np.ndarray) -> None:
        """Write the parameter to its place in a stored tensor: the inverse of `unpack`."""
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


@dataclass(frozen=True)
class Family:
    """A family of models, all of it data and functions of configs."""

    model_type: str
    architecture: str
    base: str
    """What the names of a checkpoint with a head start with, and those of one without may lack."""
    read: Callable[[Attributes], Config]
    write: Callable[[Config], dict[str, Any]]
    """The `config.json` of a config. It need not ask whether the family has such a model: it has, if `read` gives the
    same config back."""
    tensors: Callable[[Config], Mapping[str, Tensor]]
    """{parameter: tensor}, both without `base`; parameters as `embed.weight` and `blocks.*.attn.q.weight`."""
    head: str = "lm_head"
    """What the unembedding's tensors are called. They stand outside `base`, and a tied one may be there too."""
    marks: tuple[str, ...] = ()
    """Attributes by which a `config.json` that names no architecture is known."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that files have and no forward pass needs (buffers of old versions)."""

    def stored_name(self, name: str) -> str:
        """With `base` where it belongs."""
        return name if name.startswith(f"{self.head}.") else self.base + name

    def has(self, config: Config) -> bool:
        """Whether one of its models is this."""
        try:
            attributes = Attributes(self.write(config), self.model_type)
            same = self.read(attributes) == config
            attributes.close()
        except UserError:
            return False
        return same
