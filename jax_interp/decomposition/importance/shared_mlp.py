"""One MLP for all components of a matrix, or one MLP for all components of all matrices."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Decomposed, broadcast_bias
from jax_interp.decomposition.importance.base import (
    IMPORTANCE_FUNCTIONS,
    ImportanceConfig,
    PerMatrix,
    concatenate_matrices,
    gelu,
    normal_init,
    require_vectors,
    split_components,
    total_widths,
)
from jax_interp.decomposition.matrices import is_stacked


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """`x weight + bias`."""

    weight: Float[Array, "*layer d_in d_out"]
    bias: Float[Array, "*layer d_out"]

    def __call__(self, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows d_out"]:
        y = jnp.einsum("...i,io->...o", x, self.weight.astype(x.dtype))
        return y + broadcast_bias(self.bias, y)


MLP = tuple[Dense, ...]


def init_mlp(key: Array, sizes: tuple[int, ...], layer: tuple[int, ...] = ()) -> MLP:
    """Dense layers with these widths. Biases are zero; the gain is √2 for all layers but the last."""
    keys = jax.random.split(key, len(sizes) - 1)
    gains = (2**0.5,) * (len(sizes) - 2) + (1.0,)
    return tuple(
        Dense(normal_init(k, (*layer, n, m), n, gain), jnp.zeros((*layer, m)))
        for k, n, m, gain in zip(keys, sizes, sizes[1:], gains)
    )


def apply_mlp(layers: MLP, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows d_out"]:
    """Apply the layers in order, with gelu between them."""
    for layer in layers[:-1]:
        x = gelu(layer(x))
    return layers[-1](x)


@IMPORTANCE_FUNCTIONS.register
@reads_older_files(called=("SharedGates",))
@dataclasses.dataclass(frozen=True)
class SharedMLP(ImportanceConfig):
    """One MLP for each matrix. It reads the input of the matrix and returns the importances of all its components.

    The widths are d_in, `*hidden`, C.
    """

    row_by_row: ClassVar[bool] = True
    hidden: tuple[int, ...] = (50,)

    def init(self, key: Key[Array, ""], model: Decomposed) -> SharedMLPFunction:
        found = {}
        for i, name in enumerate(model.names):
            *layer, d_in, C = model.of(name).V.shape
            found[name] = init_mlp(jax.random.fold_in(key, i), (d_in, *self.hidden, C), tuple(layer))
        return SharedMLPFunction(found)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedMLPFunction:
    """The importance function of `SharedMLP`."""

    networks: dict[str, MLP]

    def __call__(self, model: Decomposed, inputs: PerMatrix) -> PerMatrix:
        return {
            name: (jax.vmap(apply_mlp) if is_stacked(name) else apply_mlp)(self.networks[name], x)
            for name, x in require_vectors(inputs).items()
        }


@IMPORTANCE_FUNCTIONS.register
@reads_older_files(called=("GlobalGates",))
@dataclasses.dataclass(frozen=True)
class GlobalMLP(ImportanceConfig):
    """One MLP that reads the concatenated inputs of all matrices and returns the importances of all components.

    The widths are Σ d_in, `*hidden`, Σ C.
    """

    row_by_row: ClassVar[bool] = True
    hidden: tuple[int, ...] = (400, 300)

    def init(self, key: Key[Array, ""], model: Decomposed) -> GlobalMLPFunction:
        d_in, C = total_widths(model)
        return GlobalMLPFunction(init_mlp(key, (d_in, *self.hidden, C)))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class GlobalMLPFunction:
    """The importance function of `GlobalMLP`."""

    network: MLP

    def __call__(self, model: Decomposed, inputs: PerMatrix) -> PerMatrix:
        return split_components(apply_mlp(self.network, concatenate_matrices(require_vectors(inputs))), model)
