"""Global gates: one network from what all matrices read to all components' importances."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Key

from jax_interp.decomposition.importance.inputs import PerMatrix, joined, parted, vectors, widths
from jax_interp.decomposition.importance.shared import Perceptron, perceptron, through


@dataclasses.dataclass(frozen=True)
class GlobalGates:
    """`g = MLP(all inputs side by side)`, of widths Σ d_in, `*hidden`, Σ C, with gelu between."""

    hidden: tuple[int, ...] = (400, 300)

    def init(self, key: Key[Array, ""], model: Any) -> Global:
        d_in, C = widths(model)
        return Global(perceptron(key, (d_in, *self.hidden, C)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Global:
    network: Perceptron

    def __call__(self, model: Any, inputs: PerMatrix) -> PerMatrix:
        return parted(through(self.network, joined(vectors(inputs))), model)
