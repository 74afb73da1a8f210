"""The MLP of a block, gated or not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from jax_interp.core.layer import out_sharding_like
from jax_interp.core.linear import Linear
from jax_interp.core.norms import LayerNorm
from jax_interp.models.config import Config
from jax_interp.surgery import Site


def solu(x: Float[Array, "*batch neuron"]) -> Float[Array, "*batch neuron"]:
    """x · softmax(x) over the neurons (Elhage et al. 2022)."""
    return x * jax.nn.softmax(x, axis=-1)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "solu": solu,
}


class MLP(nnx.Module):
    """An MLP: `down(act(up x))`, or gated: `down(act(gate x) * up x)` (Shazeer 2020).

    It names `pre` (the input of the activation), `pre_linear` (the other factor of a gated MLP), `mid` (the input of
    the norm of the neurons, if there is one) and `post` (the input of `down`).
    """

    def __init__(self, config: Config, key: Array, *, std: float, out_std: float, dtype: DTypeLike):
        up, gate, down = jax.random.split(key, 3)
        wide = partial(Linear, d_in=config.d_model, d_out=config.d_mlp, bias=config.mlp_bias, std=std, dtype=dtype)
        self.up = wide(up)
        self.gate = wide(gate) if config.gated_mlp else None
        self.ln = (
            LayerNorm(config.d_mlp, eps=config.norm_eps, affine=config.norm_affine, dtype=dtype)
            if config.mlp_norm
            else None
        )
        self.down = Linear(down, config.d_mlp, config.d_model, bias=config.mlp_bias, std=out_std, dtype=dtype)
        self.act = config.act

    def __call__(self, x: Float[Array, "batch pos d_model"], site: Site) -> Float[Array, "batch pos d_model"]:
        act, axes = ACTIVATIONS[self.act], "batch pos d_mlp"
        if self.gate is None:
            post = act(site("pre", self.up(x, site / "up"), axes))
        else:
            pre = site("pre", self.gate(x, site / "gate"), axes)
            post = act(pre) * site("pre_linear", self.up(x, site / "up"), axes)
        if self.ln is not None:
            post = self.ln(site("mid", post, axes), site / "ln")
        return self.down(site("post", post, axes), site / "down", out_sharding_like(x))
