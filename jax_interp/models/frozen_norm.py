"""A norm that divides by a number of its own, and so is an affine map of the residual stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_interp.models.layers import LayerNorm, RMSNorm
from jax_interp.surgery import Site


class FrozenNorm(nnx.Module):
    """LayerNorm or RMSNorm with a constant for its denominator: `(x - mean) / scale * weight + bias`.

    The mean, a linear map of x, stays (LayerNorm only). Names `scale` and `normalized` as the norm does. `scale` is a
    number, say the mean over a text of `blocks.3.ln1.scale`; nothing is trained through it. To freeze each token's own
    denominator for one text instead, no part need be replaced: `at("blocks.*.ln1.scale", Each(Freeze(values)))`.
    """

    def __init__(self, norm: LayerNorm | RMSNorm, scale: Float[Array, ""]):
        self.norm = norm
        self.scale = nnx.data(jnp.asarray(scale))

    def __call__(self, x: Float[Array, "batch pos d_model"], site: Site) -> Float[Array, "batch pos d_model"]:
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        y, norm = x.astype(dtype), self.norm
        if isinstance(norm, LayerNorm):
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        scale = jnp.broadcast_to(jax.lax.stop_gradient(self.scale).astype(dtype), (*x.shape[:-1], 1))
        scale = site("scale", scale, "batch pos one")
        y = site("normalized", (y / scale).astype(x.dtype), "batch pos d_model").astype(dtype)
        if norm.weight is not None:
            weight = norm.weight[...].astype(dtype)
            y = y * (weight + 1 if isinstance(norm, RMSNorm) and norm.offset else weight)[None, None]
        if isinstance(norm, LayerNorm) and norm.bias is not None:
            y = y + norm.bias[...].astype(dtype)[None, None]
        return y.astype(x.dtype)
