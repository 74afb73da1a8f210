"""What a family of models is: which configs it has, and where its tensors are. Each family's file makes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes


@dataclass(frozen=True)
class Tensor:
    """Where a parameter is found in a checkpoint: in the tensor `name`, with `{}` for the layer.

    `transposed`: stored `[out, in]`, as torch's Linear does. `part` `(i, n)`: the i-th of n equal parts of the last
    axis (after transposing), where several parameters are fused in one tensor.
    """

    name: str
    transposed: bool = False
    part: tuple[int, int] | None = None

    def shape(self, parameter: tuple[int, ...]) -> tuple[int, ...]:
        """The stored tensor's shape, by the parameter's."""
        shape = (*parameter[:-1], parameter[-1] * (1 if self.part is None else self.part[1]))
        return shape[::-1] if self.transposed else shape

    def window(self, parameter: tuple[int, ...]) -> tuple[slice, ...]:
        """Which part of the stored tensor the parameter is."""
        start = 0 if self.part is None else self.part[0] * parameter[-1]
        window = (*[slice(0, n) for n in parameter[:-1]], slice(start, start + parameter[-1]))
        return window[::-1] if self.transposed else window

    def orient(self, array: np.ndarray) -> np.ndarray:
        """From the stored orientation to the parameter's, or back."""
        return array.T if self.transposed else array


@dataclass(frozen=True)
class Family:
    """A family of models, all of it data and functions of configs."""

    model_type: str
    architecture: str
    base: str
    """What the names of a checkpoint with a head start with, and those of one without may lack."""
    read: Callable[[Attributes], Config]
    write: Callable[[Config], dict | None]
    """The `config.json` of a config, None where the family has no such model."""
    tensors: Callable[[Config], dict[str, Tensor]]
    """{parameter: tensor}, both without `base`; parameters as `embed.weight` and `blocks.*.attn.q.weight`."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that files have and no forward pass needs (buffers of old versions)."""
