"""Shared gates: one network a matrix, from what it reads to all its components' importances."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.decomposition.components import over
from jax_interp.decomposition.importance.inputs import PerMatrix, dense, gelu, vectors
from jax_interp.decomposition.matrices import is_stacked


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    weight: Float[Array, "*layer d_in d_out"]
    bias: Float[Array, "*layer d_out"]

    def __call__(self, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows d_out"]:
        y = jnp.einsum("...i,io->...o", x, self.weight.astype(x.dtype))
        return y + over(self.bias, y)


Perceptron = tuple[Dense, ...]


def perceptron(key: Array, sizes: tuple[int, ...], layer: tuple[int, ...] = ()) -> Perceptron:
    """Layers of these widths, gain √2 for all but the last, biases zero."""
    keys = jax.random.split(key, len(sizes) - 1)
    gains = (2**0.5,) * (len(sizes) - 2) + (1.0,)
    return tuple(
        Dense(dense(k, (*layer, n, m), n, gain), jnp.zeros((*layer, m)))
        for k, n, m, gain in zip(keys, sizes, sizes[1:], gains)
    )


def through(layers: Perceptron, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows d_out"]:
    for layer in layers[:-1]:
        x = gelu(layer(x))
    return layers[-1](x)


@dataclasses.dataclass(frozen=True)
class SharedGates:
    """`g = MLP(x)`, of widths d_in, `*hidden`, C, with gelu between."""

    hidden: tuple[int, ...] = (50,)

    def init(self, key: Key[Array, ""], model: Any) -> Shared:
        found = {}
        for i, name in enumerate(model.names):
            *layer, d_in, C = model.of(name).V.shape
            found[name] = perceptron(jax.random.fold_in(key, i), (d_in, *self.hidden, C), tuple(layer))
        return Shared(found)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shared:
    networks: dict[str, Perceptron]

    def __call__(self, model: Any, inputs: PerMatrix) -> PerMatrix:
        return {
            name: (jax.vmap(through) if is_stacked(name) else through)(self.networks[name], x)
            for name, x in vectors(inputs).items()
        }
