"""Linear maps of the toys: `weight` is `[d_in, d_out]`, as in the decoder, and each is called with its scope."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.surgery import Site

Draw = Literal["xavier", "torch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """`x @ weight + bias`."""

    weight: Float[Array, "d_in d_out"]
    bias: Float[Array, "d_out"] | None = None

    def __call__(self, x: Float[Array, "*batch d_in"], site: Site) -> Float[Array, "*batch d_out"]:
        return _plus(x @ self.weight, self.bias)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Transposed:
    """Another map's matrix, transposed, with a bias of its own. It holds no matrix: who calls it passes the other's."""

    bias: Float[Array, "d_out"] | None = None

    def __call__(
        self, x: Float[Array, "*batch d_in"], site: Site, weight: Float[Array, "d_out d_in"]
    ) -> Float[Array, "*batch d_out"]:
        return _plus(jnp.einsum("...i,oi->...o", x, weight), self.bias)


def draw(key: Key[Array, ""], d_in: int, d_out: int, how: Draw = "xavier") -> Float[Array, "d_in d_out"]:
    """ "xavier": N(0, 2 / (d_in + d_out)). "torch": U(±1/√d_in), what `torch.nn.Linear` starts with."""
    if how == "torch":
        return draw_bias(key, d_in, (d_in, d_out))
    return jax.random.normal(key, (d_in, d_out)) * (2 / (d_in + d_out)) ** 0.5


def draw_bias(key: Key[Array, ""], d_in: int, shape: tuple[int, ...]) -> Array:
    """U(±1/√d_in)."""
    return jax.random.uniform(key, shape, minval=-(d_in**-0.5), maxval=d_in**-0.5)


def _plus(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + jnp.expand_dims(bias, range(x.ndim - 1))
