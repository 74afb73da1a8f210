"""LoRA: a linear map plus a product of two thin matrices, to be put in its place by selection."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_interp.surgery.site import Site


class LowRank(nnx.Module):
    """`scale * (x @ a) @ b`, zero as it is made (`b` is zero). Names `low_rank`, what stands between the two."""

    def __init__(self, key: Array, d_in: int, d_out: int, rank: int, *, scale: float, dtype: Any):
        self.a = nnx.Param((jax.random.normal(key, (d_in, rank)) / d_in**0.5).astype(dtype))
        self.b = nnx.Param(jnp.zeros((rank, d_out), dtype))
        self.scale = scale

    def __call__(self, x: Float[Array, "batch pos d_in"], site: Site) -> Float[Array, "batch pos d_out"]:
        inner = site("low_rank", x @ self.a[...], "batch pos rank")
        return jnp.asarray(self.scale, x.dtype) * (inner @ self.b[...])

    def product(self) -> Float[Array, "*layer d_in d_out"]:
        """The matrix that it stands for, of every layer where it is stacked."""
        return jnp.asarray(self.scale, self.a[...].dtype) * (self.a[...] @ self.b[...])


class LoRA(nnx.Module):
    """`linear(x) + (alpha / rank) x a b` (Hu et al. 2021, "LoRA"), the same function as `linear` when it is made.

    `linear` is any part with a `weight` `[d_in, d_out]`, called as `linear(x, site, ...)`. What is trained is in the
    part `low_rank`, of a class of its own so that `split(model, LowRank)` finds it. `merged` is the linear again.
    """

    def __init__(self, linear: Any, key: Array, *, rank: int = 4, alpha: float | None = None):
        d_in, d_out = linear.weight[...].shape
        self.linear = linear
        scale = 1.0 if alpha is None else alpha / rank
        self.low_rank = LowRank(key, d_in, d_out, rank, scale=scale, dtype=linear.weight[...].dtype)

    def __call__(self, x: Float[Array, "batch pos d_in"], site: Site, *args: Any) -> Float[Array, "batch pos d_out"]:
        return self.linear(x, site, *args) + self.low_rank(x, site)

    @property
    def weight(self) -> Float[Array, "*layer d_in d_out"]:
        """The matrix that all of it stands for."""
        return self.linear.weight[...] + self.low_rank.product()

    def merged(self) -> Any:
        """The linear map with the product added to its weight."""
        linear = jax.tree.map(lambda leaf: leaf, self.linear)
        linear.weight = nnx.Param(self.weight)
        return linear
