"""The parts of a decoder: linear maps, embeddings and norms.

Each is called with its scope, though most name nothing: what takes a part's place (a sum of components, LoRA, a frozen
norm) can then name values of its own (`blocks.3.mlp.up.components`).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int

from jax_interp.models.config import Config
from jax_interp.models.sharding import rows_like
from jax_interp.surgery import Site


class Linear(nnx.Module):
    """`x @ weight + bias`, with weight `[d_in, d_out]`.

    Where the contracted axis may be sharded, the caller says by `out_sharding` how the result is.
    """

    def __init__(self, key: Array, d_in: int, d_out: int, *, bias: bool, std: float, dtype: DTypeLike):
        self.weight = nnx.Param(normal(key, (d_in, d_out), std, dtype))
        self.bias = nnx.Param(jnp.zeros(d_out, dtype)) if bias else None

    def __call__(
        self, x: Float[Array, "batch pos d_in"], site: Site, out_sharding: P | None = None
    ) -> Float[Array, "batch pos d_out"]:
        y = jnp.einsum("bpi,io->bpo", x, self.weight[...], out_sharding=out_sharding)
        return y if self.bias is None else y + jnp.expand_dims(self.bias[...], (0, 1))


class Embedding(nnx.Module):
    """One row of `weight` `[count, d_model]` for each index; `attend` is its transpose, a tied unembedding."""

    def __init__(self, key: Array, count: int, d_model: int, *, std: float, dtype: DTypeLike):
        self.weight = nnx.Param(normal(key, (count, d_model), std, dtype))

    def __call__(self, index: Int[Array, "batch pos"], site: Site) -> Float[Array, "batch pos d_model"]:
        # A compiled lookup cannot raise: outside the table it gives NaN, which shows, and not some other row.
        return (
            self.weight[...]
            .at[index]
            .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False, out_sharding=rows_like(index))
        )

    def attend(self, x: Float[Array, "batch pos d_model"]) -> Float[Array, "batch pos count"]:
        return jnp.einsum("bpd,vd->bpv", x, self.weight[...])


class RMSNorm(nnx.Module):
    """`x / sqrt(mean(x²) + eps) * weight` (Zhang & Sennrich 2019); with `offset`, `* (1 + weight)`."""

    def __init__(self, width: int, *, eps: float, affine: bool, offset: bool, dtype: DTypeLike):
        start = jnp.zeros if offset else jnp.ones
        self.weight = nnx.Param(start(width, dtype)) if affine else None
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "batch pos *head width"], site: Site) -> Float[Array, "batch pos *head width"]:
        y = _normalize(x, site, self.eps, centred=False)
        if self.weight is None:
            return y
        if not self.offset:
            return y * _over(self.weight, y)
        weight = wide(_over(self.weight, y))
        return (y.astype(weight.dtype) * (weight + jnp.asarray(1, weight.dtype))).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`(x - mean) / sqrt(var + eps) * weight + bias`, with the biased variance (Ba et al. 2016)."""

    def __init__(self, width: int, *, eps: float, affine: bool, dtype: DTypeLike):
        self.weight = nnx.Param(jnp.ones(width, dtype)) if affine else None
        self.bias = nnx.Param(jnp.zeros(width, dtype)) if affine else None
        self.eps = eps

    def __call__(self, x: Float[Array, "batch pos width"], site: Site) -> Float[Array, "batch pos width"]:
        y = _normalize(x, site, self.eps, centred=True)
        if self.weight is None or self.bias is None:
            return y
        weight, bias = (wide(_over(p, y)) for p in (self.weight, self.bias))
        return (y.astype(weight.dtype) * weight + bias).astype(x.dtype)


def norm(config: Config, dtype: DTypeLike, width: int | None = None) -> LayerNorm | RMSNorm | None:
    """The norm that the config names, over `d_model` values or as many as given; None where it names none."""
    width = config.d_model if width is None else width
    if config.norm == "rmsnorm":
        return RMSNorm(width, eps=config.norm_eps, affine=config.norm_affine, offset=config.norm_offset, dtype=dtype)
    return (
        LayerNorm(width, eps=config.norm_eps, affine=config.norm_affine, dtype=dtype)
        if config.norm == "layernorm"
        else None
    )


def normal(key: Array, shape: tuple[int, ...], std: float, dtype: DTypeLike) -> Array:
    """Gaussian weights: drawn in float32, so that a dtype changes their rounding and not the draw."""
    return (jax.random.normal(key, shape, jnp.float32) * std).astype(dtype)


def _normalize(x: Array, site: Site, eps: float, *, centred: bool) -> Array:
    """`x` over its scale. In float32 at least: squares of bfloat16 values lose what the norm is to measure."""
    y = wide(x)
    if centred:
        y = y - _mean(y)
    scale = jnp.sqrt(_mean(y * y) + eps)
    head = " head" if x.ndim == 4 else ""
    width = "d_head" if x.ndim == 4 else "d_model"
    # The bound changes nothing but what XLA sees: a division by a bare sqrt it turns into a product with rsqrt, unless
    # somebody reads the sqrt, and then reading would change bits.
    scale = site("scale", jnp.maximum(scale, math.sqrt(eps)), f"batch pos{head} one")
    return site("normalized", (y / scale).astype(x.dtype), f"batch pos{head} {width}")


def _mean(x: Array) -> Array:
    """The mean over the last axis, dividing before it sums: a product after the sum may or may not be contracted with
    what comes next, by what is fused there, and then unrolled and scanned blocks would differ in the last bit.
    """
    return jnp.sum(x * jnp.asarray(1 / x.shape[-1], x.dtype), axis=-1, keepdims=True)


def wide(x: Array) -> Array:
    """In float32 at least: sums over many parts, and what is divided by, lose too much in 16 bits."""
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)


def _over(parameter: nnx.Param, x: Array) -> Array:
    """A vector with as many axes as `x`, to be multiplied with its last."""
    return jnp.expand_dims(parameter[...], range(x.ndim - 1))
