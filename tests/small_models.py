"""Small models of both kinds, with weights large enough that attention is peaky and errors show."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.core.leaves import flatten
from jax_interp.models import Config, Decoder, Rope, RopeScaling, init

GPT2_LIKE = Config(
    n_layers=3,
    d_model=32,
    n_heads=4,
    d_mlp=48,
    vocab_size=61,
    n_ctx=24,
    act="gelu_tanh",
    gated_mlp=False,
    norm="layernorm",
    positions="learned",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
)
LLAMA_LIKE = Config(
    n_layers=3,
    d_model=32,
    n_heads=4,
    n_kv_heads=2,
    d_mlp=48,
    vocab_size=64,
    n_ctx=24,
    rope=Rope(base=1000.0, scaling=RopeScaling("llama3", 4.0, original_n_ctx=16)),
    tied_embedding=False,
)
CONFIGS = {"gpt2-like": GPT2_LIKE, "llama-like": LLAMA_LIKE}


def peaky(config: Config, seed: int = 0, dtype=jnp.float32) -> Decoder:
    """A model with random weights everywhere, biases and norms too, about 1 in scale."""
    model = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    rng, leaves = np.random.default_rng(seed), []
    for address, leaf in flatten(model).items():
        noise = rng.standard_normal(leaf.shape)
        if address.endswith("bias"):
            drawn = 0.3 * noise
        elif ".ln" in f".{address}" or "_norm." in address:
            drawn = 0.3 * noise + (0 if config.norm_offset else 1)
        else:
            drawn = (0.1 if address.endswith(("attn.o.weight", "mlp.down.weight")) else 0.2) * noise
        leaves.append(jnp.asarray(drawn, dtype))
    return jax.tree.unflatten(jax.tree.structure(model), leaves)
