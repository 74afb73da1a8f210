"""LoRA: a linear map plus a product of two thin matrices. Put it in the place of a linear map with `replace_each`."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Key

from jax_interp.surgery.site import Site


class Linear(Protocol):
    """What `LoRA` adapts: a part with a weight, called with its input and its site."""

    weight: nnx.Param

    def __call__(self, x: Array, site: Site, *args: Any) -> Array: ...


class LowRank(nnx.Module):
    """The trained part of a `LoRA`: `scale * (x @ a) @ b`. `b` starts at zero. `x @ a` is the value `low_rank`.

    Args:
      key: the random key of `a`.
      d_in: width of the input.
      d_out: width of the output.
      rank: the width between the two matrices.
      scale: a constant factor.
      dtype: of both matrices.
    """

    def __init__(self, key: Key[Array, ""], d_in: int, d_out: int, rank: int, *, scale: float, dtype: DTypeLike):
        self.a = nnx.Param((jax.random.normal(key, (d_in, rank)) / d_in**0.5).astype(dtype))
        self.b = nnx.Param(jnp.zeros((rank, d_out), dtype))
        self.scale = scale

    def __call__(self, x: Float[Array, "batch pos d_in"], site: Site) -> Float[Array, "batch pos d_out"]:
        inner = site("low_rank", x @ self.a[...], "batch pos rank")
        return jnp.asarray(self.scale, x.dtype) * (inner @ self.b[...])

    def product(self) -> Float[Array, "*layer d_in d_out"]:
        """`scale * a @ b`; of every layer if it is stacked."""
        return jnp.asarray(self.scale, self.a[...].dtype) * (self.a[...] @ self.b[...])


class LoRA(nnx.Module):
    """`linear(x) + (alpha / rank) x a b` (Hu et al. 2021, "LoRA"). When it is made it is the same function as `linear`.

    What is trained is the part `low_rank`. It has a class of its own, so that `split(model, LowRank)` finds it.

    Args:
      linear: a part with a `weight` `[d_in, d_out]`, which is called as `linear(x, site, ...)`.
      key: the random key of `a`.
      rank: the width between the two matrices.
      alpha: the product is multiplied by alpha / rank; None: by 1.

    Example:
        adapted = replace_each(model, "blocks.*.attn.q", LoRA, jax.random.split(key, n_layers))
        trained, rest = split(adapted, LowRank)
        merged = replace(adapted, LoRA, LoRA.merged)
    """

    def __init__(self, linear: Linear, key: Key[Array, ""], *, rank: int = 4, alpha: float | None = None):
        d_in, d_out = linear.weight[...].shape
        self.linear = linear
        scale = 1.0 if alpha is None else alpha / rank
        self.low_rank = LowRank(key, d_in, d_out, rank, scale=scale, dtype=linear.weight[...].dtype)

    def __call__(self, x: Float[Array, "batch pos d_in"], site: Site, *args: Any) -> Float[Array, "batch pos d_out"]:
        return self.linear(x, site, *args) + self.low_rank(x, site)

    @property
    def weight(self) -> Float[Array, "*layer d_in d_out"]:
        """The weight of `linear` plus the product."""
        return self.linear.weight[...] + self.low_rank.product()

    def merged(self) -> Linear:
        """The linear map alone, with the product added to its weight."""
        linear = jax.tree.map(lambda leaf: leaf, self.linear)
        linear.weight = nnx.Param(self.weight)
        return linear
