"""Linear maps and embeddings.

A layer is called with its scope, even if the layer names no value. A module that replaces the layer (a sum of
components, LoRA) can then name its own values (`blocks.3.mlp.up.components`).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from jax_interp.core.layer import Scope, out_sharding_like, out_sharding_of_rows

FEW_ROWS = 16
"""`few_rows_product` is meant for at most this number of rows."""


class Linear(nnx.Module):
    """`x @ weight + bias`, with weight `[d_in, d_out]`.

    Args:
      key: the random key of the weight, which is normal with standard deviation `std`. The bias starts at zero.
      d_in: number of input features.
      d_out: number of output features.
      bias: whether there is a bias.
      std: standard deviation of the initial weight.
      dtype: the dtype of the parameters.
    """

    def __init__(self, key: Array, d_in: int, d_out: int, *, bias: bool, std: float, dtype: DTypeLike):
        self.weight = nnx.Param(normal(key, (d_in, d_out), std, dtype))
        self.bias = nnx.Param(jnp.zeros(d_out, dtype)) if bias else None

    def __call__(
        self, x: Float[Array, "batch pos d_in"], site: Scope, out_sharding: P | None = None
    ) -> Float[Array, "batch pos d_out"]:
        """Apply the map. `out_sharding` is needed if `d_in` may be sharded over an explicit mesh axis."""
        y = jnp.einsum("bpi,io->bpo", x, self.weight[...], out_sharding=out_sharding)
        return y if self.bias is None else y + jnp.expand_dims(self.bias[...], (0, 1))


class Embedding(nnx.Module):
    """A table `weight` `[count, d_model]` with one row for each index.

    An index outside the table gives NaN, because a compiled lookup cannot raise.
    """

    def __init__(self, key: Array, count: int, d_model: int, *, std: float, dtype: DTypeLike):
        self.weight = nnx.Param(normal(key, (count, d_model), std, dtype))

    def __call__(self, index: Int[Array, "batch pos"], site: Scope) -> Float[Array, "batch pos d_model"]:
        """The rows of the table at `index`."""
        return (
            self.weight[...]
            .at[index]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=out_sharding_of_rows(index))
        )

    def attend(self, x: Float[Array, "batch pos d_model"]) -> Float[Array, "batch pos count"]:
        """The dot product of `x` with every row: the unembedding of a model with tied embeddings."""
        if 1 < x.shape[0] * x.shape[1] <= FEW_ROWS and out_sharding_like(x) is None:
            return few_rows_product(x, self.weight[...])
        return jnp.einsum("bpd,vd->bpv", x, self.weight[...])


def few_rows_product(
    x: Float[Array, "batch pos d_in"], weight: Float[Array, "d_out d_in"]
) -> Float[Array, "batch pos d_out"]:
    """`x weightᵀ`, computed with the outputs first. On a CPU this is about twice as fast for a few rows of `x`."""
    return jnp.moveaxis(jnp.einsum("bpi,oi->obp", x, weight), 0, -1)


def normal(key: Array, shape: tuple[int, ...], std: float, dtype: DTypeLike) -> Array:
    """Gaussian weights. They are drawn in float32 and then cast, so `dtype` changes only the rounding."""
    return (jax.random.normal(key, shape, jnp.float32) * std).astype(dtype)
