"""Llama 1 to 3: rotary positions, RMSNorm, a gated MLP, grouped key/value heads; weights `[out, in]`.

Most later families name their attributes and tensors as Llama does; they start from `read_like`, `write_like` and
`tensors_like` and say what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.activations import ACTIVATIONS, name_of
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, Tensor
from jax_interp.models.hf.rope import read_rope, write_rope

PROJECTIONS = {name: f"self_attn.{name}_proj" for name in "qkvo"} | {
    name: f"mlp.{name}_proj" for name in ("gate", "up", "down")
}
BEFORE = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}


def read_like(
    attributes: Attributes,
    *,
    n_ctx: int = 2048,
    base: float = 10_000.0,
    tied: bool = False,
    part: float = 1.0,
    eps: float = 1e-6,
) -> dict[str, Any]:
    """What `Config` is made of, by the attributes that such families share; the arguments are a family's defaults."""
    take = attributes.take
    d_model, n_heads = take("hidden_size"), take("num_attention_heads")
    d_head = take("head_dim", d_model // n_heads)
    n_ctx = take("max_position_embeddings", n_ctx)
    return {
        "n_layers": take("num_hidden_layers"),
        "d_model": d_model,
        "n_heads": n_heads,
        "n_kv_heads": take("num_key_value_heads", 0),
        "d_head": d_head,
        "d_mlp": take("intermediate_size"),
        "vocab_size": take("vocab_size"),
        "n_ctx": n_ctx,
        "act": attributes.choose("hidden_act", ACTIVATIONS, "silu"),
        "norm_eps": take("rms_norm_eps", eps),
        "rope": read_rope(attributes, d_head, n_ctx, base=base, part=part),
        "tied_embedding": take("tie_word_embeddings", tied),
    }


def write_like(config: Config) -> dict[str, Any]:
    """The attributes that such families share."""
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_mlp,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.n_ctx,
        "hidden_act": name_of(config.act),
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": write_rope(config.rope, config.d_head),
        "rope_theta": config.rope.base,
        "tie_word_embeddings": config.tied_embedding,
    }


def tensors_like(
    config: Config, *, norms: Mapping[str, str] = BEFORE, projections: Mapping[str, str] = PROJECTIONS
) -> dict[str, Tensor]:
    """Where the parameters are. `norms` and `projections` are what a family calls those of a block."""
    kinds = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    found = {"embed.weight": Tensor("embed_tokens.weight")}
    found |= {f"ln_final.{kind}": Tensor(f"norm.{kind}") for kind in kinds}
    if not config.tied_embedding:
        found["unembed.weight"] = Tensor("lm_head.weight", transposed=True)
    if config.unembed_bias:
        found["unembed.bias"] = Tensor("lm_head.bias")
    for ours, theirs in norms.items():
        found |= {f"blocks.*.{ours}.{kind}": Tensor(f"layers.{{}}.{theirs}.{kind}") for kind in kinds}
    if config.qk_norm != "no":
        found |= {f"blocks.*.attn.{x}_norm.weight": Tensor(f"layers.{{}}.self_attn.{x}_norm.weight") for x in "qk"}
    for ours, theirs in projections.items():
        room, biased = "mlp", config.mlp_bias
        if ours in "qkvo":
            room, biased = "attn", config.out_bias if ours == "o" else config.qkv_bias
        found[f"blocks.*.{room}.{ours}.weight"] = Tensor(f"layers.{{}}.{theirs}.weight", transposed=True)
        if biased:
            found[f"blocks.*.{room}.{ours}.bias"] = Tensor(f"layers.{{}}.{theirs}.bias")
    return found


def read(attributes: Attributes) -> Config:
    attributes.ignore("pretraining_tp")  # how the products were cut up in training; they are the same products
    bias = attributes.take("attention_bias", False)
    mlp_bias = attributes.take("mlp_bias", False)
    return Config(**read_like(attributes), qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)


def write(config: Config) -> dict[str, Any]:
    return write_like(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors_like,
    ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
