"""One layer: attention and an MLP, each adding to the residual stream."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jax_interp.models.attention import Attention
from jax_interp.models.attention_context import Frame
from jax_interp.models.cache import KV
from jax_interp.models.config import Config
from jax_interp.models.layers import norm
from jax_interp.models.mlp import MLP
from jax_interp.models.moe import MixtureOfExperts
from jax_interp.surgery import Site


class Block(nnx.Module):
    """`resid_mid = resid_pre + attn_out`, `resid_post = resid_mid + mlp_out`; a parallel block, whose MLP reads the
    stream beside attention, and one without an MLP have no `resid_mid`.

    `attn_out` and `mlp_out` are what is added to the stream: after the norms that stand after attention and MLP
    (`ln1_post`, `ln2_post`) where a family has such.
    """

    def __init__(self, config: Config, key: Array, *, std: float, out_std: float, dtype: DTypeLike):
        attn, mlp = jax.random.split(key)
        before, after = config.norm_places != "after", config.norm_places != "before"
        network = MixtureOfExperts if config.n_experts else MLP
        has_mlp = config.d_mlp > 0
        self.ln1 = norm(config, dtype) if before else None
        self.attn = Attention(config, attn, std=std, out_std=out_std, dtype=dtype)
        self.ln1_post = norm(config, dtype) if after else None
        self.ln2 = norm(config, dtype) if has_mlp and before and config.parallel != "one norm" else None
        self.mlp = network(config, mlp, std=std, out_std=out_std, dtype=dtype) if has_mlp else None
        self.ln2_post = norm(config, dtype) if has_mlp and after else None
        self.parallel = config.parallel

    def __call__(self, x: Float[Array, "batch pos d_model"], site: Site, frame: Frame, state: KV | None = None) -> Any:
        """The residual stream after this layer; with a cache as `state`, `(that, the cache after these tokens)`."""
        x = site("resid_pre", x)
        normed = _through(self.ln1, x, site / "ln1")
        attn_out, after = self.attn(normed, site / "attn", frame, state)
        attn_out = site("attn_out", _through(self.ln1_post, attn_out, site / "ln1_post"))
        if self.mlp is None:
            x = x + attn_out
        elif self.parallel != "no":
            normed = normed if self.parallel == "one norm" else _through(self.ln2, x, site / "ln2")
            x = x + attn_out + site("mlp_out", self.mlp(normed, site / "mlp"))
        else:
            x = site("resid_mid", x + attn_out)
            mlp_out = self.mlp(_through(self.ln2, x, site / "ln2"), site / "mlp")
            x = x + site("mlp_out", _through(self.ln2_post, mlp_out, site / "ln2_post"))
        x = site("resid_post", x)
        return x if state is None else (x, after)


def _through(layer: Any, x: Array, site: Site) -> Array:
    return x if layer is None else layer(x, site)
