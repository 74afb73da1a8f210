"""The layers of toys. Weights are `[d_in, d_out]`, as in the decoder. A layer is called as `layer(x, site)`.

If a decomposition replaces a layer, the new layer is called in the same way.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site

WeightInit = Literal["xavier", "torch"]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
    """`x @ weight + bias`."""

    weight: Float[Array, "d_in d_out"]
    bias: Float[Array, "d_out"] | None = None

    def __call__(self, x: Float[Array, "*batch d_in"], site: Site) -> Float[Array, "*batch d_out"]:
        return _add_bias(x @ self.weight, self.bias)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Transposed:
    """Multiplies by the transpose of another layer's matrix, and adds its own bias.

    This layer holds no matrix: the model passes the matrix of the other layer. So there is only one matrix to train.
    """

    bias: Float[Array, "d_out"] | None = None

    def __call__(
        self, x: Float[Array, "*batch d_in"], site: Site, weight: Float[Array, "d_out d_in"]
    ) -> Float[Array, "*batch d_out"]:
        return _add_bias(jnp.einsum("...i,oi->...o", x, weight), self.bias)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ReluMLP:
    """`down(relu(up(x)))`, with biases if the two layers have them. Its values are `pre` and `post`."""

    up: Linear
    down: Linear

    def __call__(self, x: Float[Array, "batch d_model"], site: Site) -> Float[Array, "batch d_model"]:
        pre = site("pre", self.up(x, site / "up"), "batch neuron")
        return self.down(site("post", jax.nn.relu(pre), "batch neuron"), site / "down")


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ResidBlock:
    """A block of a residual stream: `x + mlp(x)`. Its values are `resid_pre`, `mlp_out` and `resid_post`."""

    mlp: ReluMLP

    def __call__(self, x: Float[Array, "batch d_model"], site: Site) -> Float[Array, "batch d_model"]:
        x = site("resid_pre", x, "batch d_model")
        x = x + site("mlp_out", self.mlp(x, site / "mlp"), "batch d_model")
        return site("resid_post", x, "batch d_model")


def init_weight(key: Key[Array, ""], d_in: int, d_out: int, kind: WeightInit = "xavier") -> Float[Array, "d_in d_out"]:
    """A random matrix.

    Args:
      key: random key.
      d_in: rows.
      d_out: columns.
      kind: "xavier": N(0, 2 / (d_in + d_out)). "torch": uniform in ±1/√d_in, the default of `torch.nn.Linear`.
    """
    if kind == "torch":
        return init_bias(key, d_in, (d_in, d_out))
    return jax.random.normal(key, (d_in, d_out)) * (2 / (d_in + d_out)) ** 0.5


def init_bias(key: Key[Array, ""], d_in: int, shape: tuple[int, ...]) -> Array:
    """Uniform in ±1/√d_in, the default bias of `torch.nn.Linear`."""
    return jax.random.uniform(key, shape, minval=-(d_in**-0.5), maxval=d_in**-0.5)


def _add_bias(x: Array, bias: Array | None) -> Array:
    return x if bias is None else x + jnp.expand_dims(bias, range(x.ndim - 1))
