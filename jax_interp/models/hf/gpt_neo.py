"""GPT-Neo: GPT-2 with scores that are not scaled, attention to a window in every other layer, no q, k, v biases."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.activations import ACTIVATIONS, name_of
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, Tensor
from jax_interp.models.hf.gpt2 import SUMMARY

KINDS = {"local": True, "global": False}


def read(attributes: Attributes) -> Config:
    take = attributes.take
    attributes.ignore("embed_dropout", "resid_dropout", "classifier_dropout", *SUMMARY)
    attributes.require("tie_word_embeddings", True, "GPT-Neo's unembedding is its embedding")
    n_layers, d_model = take("num_layers"), take("hidden_size")
    types = take("attention_types", [[["global", "local"], n_layers // 2]])
    layers = take("attention_layers", [kind for kinds, times in types for kind in kinds * times])
    sliding = tuple(KINDS[kind] for kind in layers)
    window = take("window_size", 256)
    return Config(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=take("num_heads"),
        d_mlp=take("intermediate_size", 4 * d_model),
        vocab_size=take("vocab_size"),
        n_ctx=take("max_position_embeddings", 2048),
        act=attributes.choose("activation_function", ACTIVATIONS, "gelu_new"),
        gated_mlp=False,
        norm="layernorm",
        norm_eps=take("layer_norm_epsilon", 1e-5),
        positions="learned",
        attn_scale=1.0,
        out_bias=True,
        mlp_bias=True,
        window=window if any(sliding) else 0,
        sliding=sliding if any(sliding) else (),
    )


def write(config: Config) -> dict[str, Any]:
    layers = ["local" if slides else "global" for slides in config.slides]
    return {
        "num_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_heads": config.n_heads,
        "intermediate_size": config.d_mlp,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.n_ctx,
        "attention_types": [[[kind], 1] for kind in layers],
        "attention_layers": layers,
        "window_size": config.window or 256,
        "activation_function": name_of(config.act, tanh="gelu_new"),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": True,
    }


def tensors(config: Config) -> dict[str, Tensor]:
    found = {"embed.weight": Tensor("wte.weight"), "pos_embed.weight": Tensor("wpe.weight")}
    for kind in ("weight", "bias"):
        found[f"ln_final.{kind}"] = Tensor(f"ln_f.{kind}")
        for ours, theirs in (("ln1", "ln_1"), ("ln2", "ln_2")):
            found[f"blocks.*.{ours}.{kind}"] = Tensor(f"h.{{}}.{theirs}.{kind}")
        for ours, theirs in (("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj"), ("attn.o", "attn.attention.out_proj")):
            found[f"blocks.*.{ours}.{kind}"] = Tensor(f"h.{{}}.{theirs}.{kind}", transposed=kind == "weight")
    for name in "qkv":
        found[f"blocks.*.attn.{name}.weight"] = Tensor(f"h.{{}}.attn.attention.{name}_proj.weight", transposed=True)
    return found


GPT_NEO = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    base="transformer.",
    read=read,
    write=write,
    tensors=tensors,
    ignored=(r"h\.\d+\.attn\.attention\.(masked_)?bias",),
)
