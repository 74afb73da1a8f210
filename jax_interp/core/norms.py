"""RMSNorm and LayerNorm, and either of them with a frozen scale."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jax_interp.core.layer import Scope, upcast


class Norm(nnx.Module):
    """The base class of the norms: `x / scale(x)`, times a weight, plus a bias, where the norm has them.

    A norm names `scale` (the denominator, `[batch, pos, 1]`) and `normalized` (before the weight).
    """

    weight: nnx.Param | None
    bias: nnx.Param | None
    eps: float
    offset: bool = False
    """Whether the weight is stored minus one."""
    centred: ClassVar[bool]
    """Whether the mean over the features is subtracted first."""

    def multiplier(self) -> Array | None:
        """What normalized values are multiplied by, at least in float32; None without weights."""
        if self.weight is None:
            return None
        weight = upcast(self.weight[...])
        return weight + jnp.asarray(1, weight.dtype) if self.offset else weight

    def normalize(self, x: Float[Array, "batch pos *head width"], site: Scope) -> Float[Array, "batch pos *head width"]:
        """`x` over its scale. Computed at least in float32: squares of bfloat16 values lose what the norm measures."""
        y = upcast(x)
        if self.centred:
            y = y - _mean(y)
        scale = jnp.sqrt(_mean(y * y) + self.eps)
        head = " head" if x.ndim == 4 else ""
        width = "d_head" if x.ndim == 4 else "d_model"
        # The bound changes no value. Without it XLA turns the division by a square root into a product with rsqrt,
        # unless somebody reads the square root, and then reading would change bits.
        scale = site("scale", jnp.maximum(scale, math.sqrt(self.eps)), f"batch pos{head} one")
        return site("normalized", (y / scale).astype(x.dtype), f"batch pos{head} {width}")

    def __call__(self, x: Float[Array, "batch pos *head width"], site: Scope) -> Float[Array, "batch pos *head width"]:
        raise NotImplementedError


class RMSNorm(Norm):
    """`x / sqrt(mean(x²) + eps) * weight` (Zhang & Sennrich 2019).

    Args:
      width: number of features.
      eps: added under the square root.
      affine: whether there is a weight.
      offset: whether the weight is stored minus one, as in Gemma: `* (1 + weight)`.
      dtype: of the weight.
    """

    bias = None
    centred = False

    def __init__(self, width: int, *, eps: float, affine: bool, offset: bool, dtype: DTypeLike):
        start = jnp.zeros if offset else jnp.ones
        self.weight = nnx.Param(start(width, dtype)) if affine else None
        self.eps, self.offset = eps, offset

    def __call__(self, x: Float[Array, "batch pos *head width"], site: Scope) -> Float[Array, "batch pos *head width"]:
        """The normed `x`, each vector of the last axis by itself."""
        y = self.normalize(x, site)
        if self.weight is None:
            return y
        if not self.offset:
            return y * _with_axes_of(y, self.weight[...])
        weight = _with_axes_of(y, self.multiplier())
        return (y.astype(weight.dtype) * weight).astype(x.dtype)


class LayerNorm(Norm):
    """`(x - mean) / sqrt(var + eps) * weight + bias`, with the biased variance (Ba et al. 2016).

    Args:
      width: number of features.
      eps: added under the square root.
      affine: whether there are a weight and a bias.
      dtype: of the parameters.
    """

    centred = True

    def __init__(self, width: int, *, eps: float, affine: bool, dtype: DTypeLike):
        self.weight = nnx.Param(jnp.ones(width, dtype)) if affine else None
        self.bias = nnx.Param(jnp.zeros(width, dtype)) if affine else None
        self.eps = eps

    def __call__(self, x: Float[Array, "batch pos width"], site: Scope) -> Float[Array, "batch pos width"]:
        """The normed `x`, each vector of the last axis by itself."""
        y = self.normalize(x, site)
        if self.weight is None or self.bias is None:
            return y
        weight, bias = (_with_axes_of(y, upcast(p[...])) for p in (self.weight, self.bias))
        return (y.astype(weight.dtype) * weight + bias).astype(x.dtype)


class FrozenNorm(nnx.Module):
    """A norm whose denominator is a constant: `(x - mean) / scale * weight + bias`, an affine map of its input.

    The mean, a linear map of `x`, stays (LayerNorm only). It names `scale` and `normalized` as the norm does. No
    gradient reaches `scale`. To freeze the denominator of each token for one text instead, no module need be replaced:
    `edit(model, at("blocks.*.ln1.scale", Each(Freeze(values))))`.

    Args:
      norm: the norm to freeze.
      scale: the denominator, a number: the mean over a text of `blocks.3.ln1.scale`, for example.

    Example:

        mean_scale = acts["ln_final.scale"].mean()
        frozen = replace(model, "ln_final", lambda norm: FrozenNorm(norm, mean_scale))
    """

    def __init__(self, norm: Norm, scale: Float[Array, ""]):
        self.norm = norm
        self.scale = nnx.data(jnp.asarray(scale))

    def __call__(self, x: Float[Array, "batch pos d_model"], site: Scope) -> Float[Array, "batch pos d_model"]:
        """The affine map of `x`."""
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        y, norm = x.astype(dtype), self.norm
        if norm.centred:
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        scale = jnp.broadcast_to(jax.lax.stop_gradient(self.scale).astype(dtype), (*x.shape[:-1], 1))
        scale = site("scale", scale, "batch pos one")
        y = site("normalized", (y / scale).astype(x.dtype), "batch pos d_model").astype(dtype)
        if (weight := norm.multiplier()) is not None:
            y = y * weight.astype(dtype)[None, None]
        if norm.bias is not None:
            y = y + norm.bias[...].astype(dtype)[None, None]
        return y.astype(x.dtype)


def _mean(x: Array) -> Array:
    """The mean over the last axis, divided before it is summed.

    Whether a compiler contracts a product after the sum with the next operation depends on what is fused there, and
    then unrolled and scanned blocks would differ in the last bit.
    """
    return jnp.sum(x * jnp.asarray(1 / x.shape[-1], x.dtype), axis=-1, keepdims=True)


def _with_axes_of(x: Array, vector: Array | None) -> Array:
    """The vector with as many axes as `x`, to be multiplied with the last axis of `x`."""
    assert vector is not None
    return jnp.expand_dims(vector, range(x.ndim - 1))
