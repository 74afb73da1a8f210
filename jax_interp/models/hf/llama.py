"""Llama 1 to 3: rotary positions, RMSNorm, a gated MLP, grouped key/value heads; weights `[out, in]`."""

from __future__ import annotations

from jax_interp.errors import UserError
from jax_interp.models.config import Config, Rope, RopeScaling
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, Tensor

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}


def read(attributes: Attributes) -> Config:
    take = attributes.take
    attributes.ignore("pretraining_tp")  # how the products were cut up in training; they are the same products
    bias = take("attention_bias", False)
    n_ctx = take("max_position_embeddings", 2048)
    return Config(
        n_layers=take("num_hidden_layers"),
        d_model=take("hidden_size"),
        n_heads=take("num_attention_heads"),
        n_kv_heads=take("num_key_value_heads", 0),
        d_head=take("head_dim", 0),
        d_mlp=take("intermediate_size"),
        vocab_size=take("vocab_size"),
        n_ctx=n_ctx,
        act=attributes.choose("hidden_act", ACTIVATIONS, "silu"),
        norm_eps=take("rms_norm_eps", 1e-6),
        rope=_rope(attributes, n_ctx),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=take("mlp_bias", False),
        tied_embedding=take("tie_word_embeddings", False),
    )


def _rope(attributes: Attributes, n_ctx: int) -> Rope:
    """`rope_parameters`, or the `rope_theta` and `rope_scaling` that came before it."""
    both = attributes.take("rope_parameters", {}) | attributes.take("rope_scaling", {})
    rope = Attributes(both, "its rope scaling")
    base = float(rope.take("rope_theta", attributes.take("rope_theta", 10_000.0)))
    kind = rope.take("rope_type", "default", also=("type",))
    scaling = None
    if kind == "linear":
        scaling = RopeScaling("linear", float(rope.take("factor")))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            factor=float(rope.take("factor")),
            low_freq=float(rope.take("low_freq_factor")),
            high_freq=float(rope.take("high_freq_factor")),
            original_n_ctx=rope.take("original_max_position_embeddings", n_ctx),
        )
    elif kind != "default":
        raise UserError(f"rope scaling {kind!r} is not supported; supported are 'default', 'linear' and 'llama3'")
    rope.close()
    return Rope(base, scaling=scaling)


def write(config: Config) -> dict | None:
    rotary = config.positions == "rotary" and config.rope.dim is None
    if not (config.norm == "rmsnorm" and rotary and config.gated_mlp and config.qkv_bias == config.out_bias):
        return None
    rope: dict = {"rope_theta": config.rope.base, "rope_type": "default"}
    if (scaling := config.rope.scaling) is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {"low_freq_factor": scaling.low_freq, "high_freq_factor": scaling.high_freq}
            rope |= {"original_max_position_embeddings": scaling.original_n_ctx}
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.d_head,
        "intermediate_size": config.d_mlp,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.n_ctx,
        "hidden_act": {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[config.act],
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,
        "rope_theta": config.rope.base,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tied_embedding,
    }


def tensors(config: Config) -> dict[str, Tensor]:
    found = {"embed.weight": Tensor("embed_tokens.weight"), "ln_final.weight": Tensor("norm.weight")}
    if not config.tied_embedding:
        found["unembed.weight"] = Tensor("lm_head.weight", transposed=True)
    found["blocks.*.ln1.weight"] = Tensor("layers.{}.input_layernorm.weight")
    found["blocks.*.ln2.weight"] = Tensor("layers.{}.post_attention_layernorm.weight")
    linears = [(f"attn.{name}", f"self_attn.{name}_proj", config.qkv_bias) for name in "qkvo"]
    linears += [(f"mlp.{name}", f"mlp.{name}_proj", config.mlp_bias) for name in ("gate", "up", "down")]
    for ours, theirs, biased in linears:
        found[f"blocks.*.{ours}.weight"] = Tensor(f"layers.{{}}.{theirs}.weight", transposed=True)
        if biased:
            found[f"blocks.*.{ours}.bias"] = Tensor(f"layers.{{}}.{theirs}.bias")
    return found


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors,
    ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
