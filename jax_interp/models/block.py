"""One layer: attention and an MLP, each reading the normed residual stream and adding to it."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jax_interp.models.attention import Attention
from jax_interp.models.cache import KV
from jax_interp.models.config import Config
from jax_interp.models.frame import Frame
from jax_interp.models.layers import norm
from jax_interp.models.mlp import MLP
from jax_interp.surgery import Site


class Block(nnx.Module):
    """A pre-norm block: `resid_mid = resid_pre + attn_out`, `resid_post = resid_mid + mlp_out`."""

    def __init__(self, config: Config, key: Array, *, std: float, out_std: float, dtype: DTypeLike):
        attn, mlp = jax.random.split(key)
        self.ln1 = norm(config, dtype)
        self.attn = Attention(config, attn, std=std, out_std=out_std, dtype=dtype)
        self.ln2 = norm(config, dtype)
        self.mlp = MLP(config, mlp, std=std, out_std=out_std, dtype=dtype)

    def __call__(self, x: Float[Array, "batch pos d_model"], site: Site, frame: Frame, state: KV | None = None) -> Any:
        """The residual stream after this layer; with a cache as `state`, `(that, the cache after these tokens)`."""
        x = site("resid_pre", x)
        attn_out, after = self.attn(self.ln1(x, site / "ln1"), site / "attn", frame, state)
        x = site("resid_mid", x + site("attn_out", attn_out))
        mlp_out = self.mlp(self.ln2(x, site / "ln2"), site / "mlp")
        x = site("resid_post", x + site("mlp_out", mlp_out))
        return x if state is None else (x, after)
