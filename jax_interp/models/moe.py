"""A mixture of experts: many gated MLPs, of which a router gives each token to a few (Shazeer et al. 2017; Mixtral)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jax_interp.models.config import Config
from jax_interp.models.layers import Linear, normal
from jax_interp.models.mlp import ACTIVATIONS
from jax_interp.models.sharding import like
from jax_interp.surgery import Site


class MixtureOfExperts(nnx.Module):
    """`Σ_c weight_c · down_e(act(gate_e x) * up_e x)` over a token's choices c of experts e.

    Names `router_logits` [batch pos expert], `expert_indices` and `expert_weights` [batch pos choice] (the largest
    probabilities, likeliest first, in sum 1), and `pre`, `pre_linear`, `post` of the chosen experts
    [batch pos choice d_mlp]; what was not chosen is never computed where the backend has grouped products.
    """

    def __init__(self, config: Config, key: Array, *, std: float, out_std: float, dtype: DTypeLike):
        router, gate, up, down = jax.random.split(key, 4)
        n, d, f = config.n_experts, config.d_model, config.d_mlp
        self.router = Linear(router, d, n, bias=False, std=std, dtype=dtype)
        self.gate = Experts(gate, n, d, f, std=std, dtype=dtype)
        self.up = Experts(up, n, d, f, std=std, dtype=dtype)
        self.down = Experts(down, n, f, d, std=out_std, dtype=dtype)
        self.act, self.choices = config.act, config.experts_per_token

    def __call__(self, x: Float[Array, "batch pos d_model"], site: Site) -> Float[Array, "batch pos d_model"]:
        scores = site("router_logits", self.router(x, site / "router"), "batch pos expert")
        weights, experts = jax.lax.top_k(jax.nn.softmax(scores.astype(jnp.float32), axis=-1), self.choices)
        experts = site("expert_indices", experts, "batch pos choice")
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        weights = site("expert_weights", weights, "batch pos choice")

        each = jnp.broadcast_to(x[:, :, None], (*experts.shape, x.shape[-1]))
        axes = "batch pos choice d_mlp"
        pre = site("pre", self.gate(each, experts, site / "gate"), axes)
        post = ACTIVATIONS[self.act](pre) * site("pre_linear", self.up(each, experts, site / "up"), axes)
        out = self.down(site("post", post, axes), experts, site / "down")
        return jnp.sum(out * weights.astype(out.dtype)[..., None], axis=2)


class Experts(nnx.Module):
    """One linear map for each expert, `weight` `[expert, d_in, d_out]`, each applied to what was given to it."""

    def __init__(self, key: Array, n: int, d_in: int, d_out: int, *, std: float, dtype: DTypeLike):
        self.weight = nnx.Param(normal(key, (n, d_in, d_out), std, dtype))

    def __call__(
        self, x: Float[Array, "batch pos choice d_in"], experts: Int[Array, "batch pos choice"], site: Site
    ) -> Float[Array, "batch pos choice d_out"]:
        rows = like(x)
        if rows is None:
            return _by_expert(x, experts, self.weight[...])
        # Tokens of all rows are sorted together: how that is done on a mesh is left to the compiler.
        return jax.sharding.auto_axes(out_sharding=rows)(_by_expert)(x, experts, self.weight[...])


def _by_expert(
    x: Float[Array, "batch pos choice d_in"],
    experts: Int[Array, "batch pos choice"],
    weight: Float[Array, "expert d_in d_out"],
) -> Float[Array, "batch pos choice d_out"]:
    flat = experts.reshape(-1)
    order = jnp.argsort(flat)
    sizes = jnp.bincount(flat, length=weight.shape[0]).astype(jnp.int32)
    grouped = jax.lax.ragged_dot(x.reshape(-1, x.shape[-1])[order], weight, sizes)
    return grouped[jnp.argsort(order)].reshape(*x.shape[:-1], weight.shape[-1])
