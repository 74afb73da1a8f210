"""One layer of a decoder: attention and an MLP, each added to the residual stream."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jax_interp.core.norms import LayerNorm, Norm, RMSNorm
from jax_interp.models.attention import Attention
from jax_interp.models.attention_context import AttentionContext
from jax_interp.models.cache import KV
from jax_interp.models.config import Config
from jax_interp.models.head_inputs import NO_COPIES, head_inputs
from jax_interp.models.mlp import MLP
from jax_interp.models.moe import MixtureOfExperts
from jax_interp.models.weight_rules import MATRICES
from jax_interp.surgery import Site
from jax_interp.training.gathering import gathered


class Block(nnx.Module):
    """`resid_mid = resid_pre + attn_out` and `resid_post = resid_mid + mlp_out`.

    `attn_out` and `mlp_out` are the values that are added to the residual stream. In families with norms after
    attention and MLP, they are the outputs of the norms `ln1_post` and `ln2_post`. In a parallel block the MLP reads
    the same stream as attention. Parallel blocks and blocks without an MLP have no `resid_mid`.

    `attn_in` and `mlp_in` are what attention and the MLP read from the stream, before the norms `ln1` and `ln2`. An
    edit there does not change the stream itself. `q_input`, `k_input` and `v_input` are the same for one head
    (`models/head_inputs.py`).
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

    def __call__(
        self, x: Float[Array, "batch pos d_model"], site: Site, context: AttentionContext, state: KV | None = None
    ) -> Float[Array, "batch pos d_model"] | tuple[Float[Array, "batch pos d_model"], KV | None]:
        """Returns the residual stream after this layer. With a cache as `state`: `(stream, updated cache)`."""
        self = gathered(self, MATRICES)
        x = site("resid_pre", x)
        stream = site("attn_in", x)
        copies = head_inputs(self.attn, stream, self.ln1, site) if isinstance(self.attn, Attention) else NO_COPIES
        normed = _optional(self.ln1, stream, site / "ln1")
        attn_out, after = self.attn(normed, site / "attn", context, state, **({"copies": copies} if copies else {}))
        attn_out = site("attn_out", _optional(self.ln1_post, attn_out, site / "ln1_post"))
        if self.mlp is None:
            x = x + attn_out
        elif self.parallel != "no":
            stream = site("mlp_in", x)
            if self.parallel != "one norm":
                normed = _optional(self.ln2, stream, site / "ln2")
            elif site.edits("attn_in") or site.edits("mlp_in"):
                normed = _optional(self.ln1, stream, (site / "ln1").again())
            x = x + attn_out + site("mlp_out", self.mlp(normed, site / "mlp"))
        else:
            x = site("resid_mid", x + attn_out)
            mlp_out = self.mlp(_optional(self.ln2, site("mlp_in", x), site / "ln2"), site / "mlp")
            x = x + site("mlp_out", _optional(self.ln2_post, mlp_out, site / "ln2_post"))
        x = site("resid_post", x)
        return x if state is None else (x, after)


def norm(config: Config, dtype: DTypeLike) -> Norm | None:
    """The norm of the config, over `d_model` features; None for `norm="none"`."""
    if config.norm == "rmsnorm":
        return RMSNorm(
            config.d_model, eps=config.norm_eps, affine=config.norm_affine, offset=config.norm_offset, dtype=dtype
        )
    if config.norm == "layernorm":
        return LayerNorm(config.d_model, eps=config.norm_eps, affine=config.norm_affine, dtype=dtype)
    return None


def _optional(layer: Callable[[Array, Site], Array] | None, x: Array, site: Site) -> Array:
    return x if layer is None else layer(x, site)
