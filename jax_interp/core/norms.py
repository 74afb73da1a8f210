"""RMSNorm, LayerNorm, and `FrozenNorm`, a norm with a constant scale."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jax_interp.core.layer import Scope, at_least_float32, upcast


class Norm(nnx.Module):
    """The base class of norms: `x / scale(x)`, times an optional weight, plus an optional bias.

    A norm names the values `scale` (the denominator, `[batch, pos, 1]`) and `normalized` (before the weight).
    """

    weight: nnx.Param | None
    bias: nnx.Param | None
    eps: float
    offset: bool = False
    """Whether the weight is stored minus one."""
    centred: ClassVar[bool]
    """Whether the mean over the features is subtracted first."""

    def multiplier(self) -> Array | None:
        """The factor of the normalized values, in at least float32; None for a norm without a weight."""
        if self.weight is None:
            return None
        weight = upcast(self.weight[...])
        return weight + jnp.asarray(1, weight.dtype) if self.offset else weight

    def normalize(
        self, x: Float[Array, "batch pos *head width"], site: Scope, head: str = "head"
    ) -> Float[Array, "batch pos *head width"]:
        """`x` divided by its scale, computed in at least float32 because squares in bfloat16 are too inexact.

        `head` is the name of the axis of heads, if `x` has one.
        """
        y = upcast(x)
        if self.centred:
            y = y - _mean(y)
        scale = jnp.sqrt(_mean(y * y) + self.eps)
        head = f" {head}" if x.ndim == 4 else ""
        width = "d_head" if x.ndim == 4 else "d_model"
        # The bound changes no value. Without the bound XLA replaces the division by a square root with a product with
        # rsqrt, but not if the square root is read. Reading `scale` would then change the last bits.
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
      dtype: the dtype of the weight.
    """

    bias = None
    centred = False

    def __init__(self, width: int, *, eps: float, affine: bool, offset: bool, dtype: DTypeLike):
        initial = jnp.zeros if offset else jnp.ones
        self.weight = nnx.Param(initial(width, dtype)) if affine else None
        self.eps, self.offset = eps, offset

    def __call__(
        self, x: Float[Array, "batch pos *head width"], site: Scope, head: str = "head"
    ) -> Float[Array, "batch pos *head width"]:
        """The normed `x`, each vector of the last axis by itself. `head` is the name of the axis of heads, if any."""
        y = self.normalize(x, site, head)
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
      dtype: the dtype of the parameters.
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

    LayerNorm still subtracts the mean of `x`, which is a linear map. The frozen norm names `scale` and `normalized`, as
    the norm does. `scale` gets no gradient. To freeze the denominator of each token of one text, an edit is enough:
    `edit(model, at("blocks.*.ln1.scale", Each(Freeze(values))))`.

    Args:
      norm: the norm to freeze.
      scale: the denominator, one number. For example the mean of `blocks.3.ln1.scale` over a text.

    Example:
        mean_scale = acts["ln_final.scale"].mean()
        frozen = replace(model, "ln_final", lambda norm: FrozenNorm(norm, mean_scale))
    """

    def __init__(self, norm: Norm, scale: Float[Array, ""]):
        self.norm = norm
        self.scale = nnx.data(jnp.asarray(scale))

    def __call__(self, x: Float[Array, "batch pos d_model"], site: Scope) -> Float[Array, "batch pos d_model"]:
        """The affine map of `x`."""
        dtype = at_least_float32(x.dtype)
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
    """The mean over the last axis. Each term is divided before the sum.

    If the sum were divided instead, the compiler could fuse that product with the next operation in some programs only.
    Unrolled and scanned blocks would then differ in the last bit.
    """
    return jnp.sum(x * jnp.asarray(1 / x.shape[-1], x.dtype), axis=-1, keepdims=True)


def _with_axes_of(x: Array, vector: Array | None) -> Array:
    """`vector` with leading axes of size 1 added, so that it broadcasts along the last axis of `x`."""
    assert vector is not None
    return jnp.expand_dims(vector, range(x.ndim - 1))
