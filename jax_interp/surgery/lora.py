"""LoRA: a linear map plus a product of two thin matrices. Put it into a model with `replace_each`."""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.linear import Embedding
from jax_interp.surgery.site import Site


class Linear(Protocol):
    """A part of a model that `LoRA` can adapt: it has a weight, and is called with its input and its site."""

    weight: Any

    def __call__(self, x: Array, site: Site, *args: Any) -> Array: ...


class LowRank(nnx.Module):
    """The trained part of a `LoRA`: `scale * (x @ a) @ b`. `b` starts at zero. `x @ a` is named `low_rank`.

    Args:
      key: the random key of `a`.
      d_in: the width of the input.
      d_out: the width of the output.
      rank: the width between the two matrices.
      scale: a constant factor.
      dtype: the dtype of both matrices.
    """

    def __init__(self, key: Key[Array, ""], d_in: int, d_out: int, rank: int, *, scale: float, dtype: DTypeLike):
        self.a = nnx.Param((jax.random.normal(key, (d_in, rank)) / d_in**0.5).astype(dtype))
        self.b = nnx.Param(jnp.zeros((rank, d_out), dtype))
        self.scale = scale

    def __call__(self, x: Float[Array, "batch pos d_in"], site: Site) -> Float[Array, "batch pos d_out"]:
        inner = site("low_rank", x @ self.a[...], "batch pos rank")
        return jnp.asarray(self.scale, x.dtype) * (inner @ self.b[...])

    def product(self) -> Float[Array, "*layer d_in d_out"]:
        """`scale * a @ b`, with a leading layer axis if the part is stacked."""
        return jnp.asarray(self.scale, self.a[...].dtype) * (self.a[...] @ self.b[...])


class LoRA(nnx.Module):
    """`linear(x) + (alpha / rank) x a b` (Hu et al. 2021, "LoRA"). A new `LoRA` computes the same function as `linear`.

    Only the part `low_rank` is trained. It has its own class, so that `split(model, LowRank)` finds it. `linear` can
    be a LoRA itself. It then names its value `adapted.low_rank`.

    Args:
      linear: a part with a `weight` `[d_in, d_out]`. It is called as `linear(x, site, ...)`.
      key: the random key of `a`.
      rank: the width between the two matrices.
      alpha: the product is multiplied by alpha / rank. None: the factor is 1.

    Raises:
      UserError: `linear` is no linear map of vectors: an embedding, experts, or a part without a weight.

    Example:
        adapted = replace_each(model, "blocks.*.attn.q", LoRA, jax.random.split(key, n_layers))
        trained, rest = split(adapted, LowRank)
        merged = replace(adapted, LoRA, LoRA.merged)
    """

    def __init__(self, linear: Linear, key: Key[Array, ""], *, rank: int = 4, alpha: float | None = None):
        weight = getattr(linear, "weight", None)
        shape = () if weight is None or isinstance(linear, Embedding) else weight[...].shape
        if len(shape) != 2:
            raise UserError(
                f"LoRA adapts a linear map with a weight [d_in, d_out], got {type(linear).__name__}"
                + (f" with {list(shape)}. For the parts of a stack use replace_each" if len(shape) > 2 else "")
            )
        d_in, d_out = shape
        self.linear = linear
        scale = 1.0 if alpha is None else alpha / rank
        self.low_rank = LowRank(key, d_in, d_out, rank, scale=scale, dtype=linear.weight[...].dtype)

    def __call__(self, x: Float[Array, "batch pos d_in"], site: Site, *args: Any) -> Float[Array, "batch pos d_out"]:
        inner = site / "adapted" if isinstance(self.linear, LoRA) else site
        return self.linear(x, inner, *args) + self.low_rank(x, site)

    @property
    def weight(self) -> Float[Array, "*layer d_in d_out"]:
        """The weight of `linear` plus the product."""
        return self.linear.weight[...] + self.low_rank.product()

    @property
    def bias(self) -> nnx.Param | None:
        """The bias of `linear`, which a LoRA does not change."""
        return getattr(self.linear, "bias", None)

    def merged(self) -> Linear:
        """A plain linear map: `linear` with the product added to its weight. A LoRA inside is merged too."""
        inner = self.linear.merged() if isinstance(self.linear, LoRA) else self.linear
        linear = jax.tree.map(lambda leaf: leaf, inner)
        linear.weight = nnx.Param(self.weight)
        return linear
