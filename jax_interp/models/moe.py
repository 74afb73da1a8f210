"""A mixture of experts: a router sends each token to some of many gated MLPs (Shazeer et al. 2017; Mixtral)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from jax_interp.core.layer import out_sharding_like, upcast
from jax_interp.core.linear import Linear, normal
from jax_interp.models.config import Config
from jax_interp.models.mlp import ACTIVATIONS
from jax_interp.surgery import Site


class MixtureOfExperts(nnx.Module):
    """A mixture of experts: `Σ_c weight_c · down_e(act(gate_e x) * up_e x)`.

    The sum is over the choices c of a token, and e is the expert of choice c. If the backend supports grouped matrix
    products, only the chosen experts are computed. The layer names

    - `router_logits`, `[batch, pos, expert]`;
    - `expert_indices` and `expert_weights`, `[batch, pos, choice]`: the experts with the largest probabilities, in
      descending order, and these probabilities, scaled to sum 1;
    - `pre`, `pre_linear` and `post` of the chosen experts, `[batch, pos, choice, d_mlp]`.
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
        weights, experts = jax.lax.top_k(jax.nn.softmax(upcast(scores), axis=-1), self.choices)
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
    """One linear map for each expert, applied to the vectors routed to it. `weight` is `[expert, d_in, d_out]`."""

    bias: nnx.Param | None = None

    def __init__(self, key: Array, n: int, d_in: int, d_out: int, *, std: float, dtype: DTypeLike):
        self.weight = nnx.Param(normal(key, (n, d_in, d_out), std, dtype))

    def __call__(
        self, x: Float[Array, "batch pos choice d_in"], experts: Int[Array, "batch pos choice"], site: Site
    ) -> Float[Array, "batch pos choice d_out"]:
        rows = out_sharding_like(x)
        if rows is None:
            return _by_expert(x, experts, self.weight[...])
        # The tokens of all rows are sorted together. On a mesh the compiler decides how.
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
