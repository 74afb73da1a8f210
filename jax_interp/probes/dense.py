"""Dense layers of small probes: x ↦ relu(x W₁ + b₁) W₂ + b₂, and how a standardisation is folded into the first one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """x W + b.

    Args:
      weight: W.
      bias: b.
    """

    weight: Float[Array, "in out"]
    bias: Float[Array, " out"]

    def __call__(self, x: Float[Array, "... in"]) -> Float[Array, "... out"]:
        y = jnp.einsum("...i,io->...o", x.astype(self.weight.dtype), self.weight, precision=jax.lax.Precision.HIGHEST)
        return y + jnp.broadcast_to(self.bias, y.shape)

    def of_raw(self, shift: Float[Array, " in"], scale: Float[Array, " in"]) -> Dense:
        """The layer that does to x what this one does to (x - shift) / scale."""
        weight = self.weight / scale[:, None]
        return Dense(weight, self.bias - jnp.einsum("i,io->o", shift, weight, precision=jax.lax.Precision.HIGHEST))


def forward(layers: Sequence[Dense], x: Float[Array, "... in"]) -> Float[Array, "... out"]:
    """The layers one after the other, with a ReLU between them."""
    for layer in layers[:-1]:
        x = jax.nn.relu(layer(x))
    return layers[-1](x)


def initial(key: Key[Array, ""], widths: Sequence[int], last_is_zero: bool) -> tuple[Dense, ...]:
    """Layers before training. W is normal with variance 2 / in before a ReLU and 1 / in at the end; b is 0.

    Args:
      key: the key of the draw.
      widths: the width of the input, of each hidden layer, and of the output.
      last_is_zero: the last layer begins at W = 0.
    """
    layers = []
    for number, (rows, columns) in enumerate(pairwise(widths)):
        last = number == len(widths) - 2
        size = 0.0 if last and last_is_zero else ((1.0 if last else 2.0) / rows) ** 0.5
        weight = size * jax.random.normal(jax.random.fold_in(key, number), (rows, columns), jnp.float32)
        layers.append(Dense(weight, jnp.zeros(columns, jnp.float32)))
    return tuple(layers)


def squared_weights(layers: Sequence[Dense]) -> Float[Array, ""]:
    """Σ W² over all layers. Biases are not counted."""
    return sum((jnp.sum(jnp.square(layer.weight)) for layer in layers), jnp.zeros((), jnp.float32))
