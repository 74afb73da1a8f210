"""GPT-Neo: GPT-2 with unscaled scores, sliding attention in every other layer, no biases of q, k and v."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES, Family
from jax_interp.models.hf.gpt2 import SUMMARY
from jax_interp.models.hf.shared_attributes import ACTIVATIONS, activation_name
from jax_interp.models.hf.tensors import TensorSpec

SLIDES_BY_TYPE = {"local": True, "global": False}


@FAMILIES.register
class GPTNeo(Family):
    """Checkpoints whose `model_type` is "gpt_neo"."""

    model_type = "gpt_neo"
    architecture = "GPTNeoForCausalLM"
    prefix = "transformer."
    ignored = (r"h\.\d+\.attn\.attention\.(masked_)?bias",)

    def read(self, attributes: Attributes) -> Config:
        take, size = attributes.take, attributes.size
        attributes.ignore("embed_dropout", "resid_dropout", *SUMMARY)
        n_layers, d_model = attributes.layers("num_layers"), size("hidden_size")
        sliding = _sliding(attributes, n_layers)
        window = size("window_size", 256)
        return Config(
            n_layers=n_layers,
            d_model=d_model,
            n_heads=size("num_heads"),
            d_mlp=size("intermediate_size", 4 * d_model, null=4 * d_model),
            vocab_size=size("vocab_size"),
            n_ctx=size("max_position_embeddings", 2048),
            act=attributes.choose("activation_function", ACTIVATIONS, "gelu_new"),
            gated_mlp=False,
            norm="layernorm",
            norm_eps=take("layer_norm_epsilon", float, 1e-5),
            positions="learned",
            attn_scale=1.0,
            out_bias=True,
            mlp_bias=True,
            window=window if any(sliding) else 0,
            sliding=sliding if any(sliding) else (),
            tied_embedding=take("tie_word_embeddings", bool, True),
        )

    def write(self, config: Config) -> dict[str, Any]:
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
            "activation_function": activation_name(config.act, tanh="gelu_new"),
            "layer_norm_epsilon": config.norm_eps,
            "tie_word_embeddings": config.tied_embedding,
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = {"embed.weight": TensorSpec("wte.weight"), "pos_embed.weight": TensorSpec("wpe.weight")}
        if not config.tied_embedding:
            specs["unembed.weight"] = TensorSpec("lm_head.weight", transposed=True)
        for kind in ("weight", "bias"):
            specs[f"ln_final.{kind}"] = TensorSpec(f"ln_f.{kind}")
            for ours, theirs in (("ln1", "ln_1"), ("ln2", "ln_2")):
                specs[f"blocks.*.{ours}.{kind}"] = TensorSpec(f"h.{{}}.{theirs}.{kind}")
            for ours, theirs in (
                ("mlp.up", "mlp.c_fc"),
                ("mlp.down", "mlp.c_proj"),
                ("attn.o", "attn.attention.out_proj"),
            ):
                specs[f"blocks.*.{ours}.{kind}"] = TensorSpec(f"h.{{}}.{theirs}.{kind}", transposed=kind == "weight")
        for name in "qkv":
            specs[f"blocks.*.attn.{name}.weight"] = TensorSpec(
                f"h.{{}}.attn.attention.{name}_proj.weight", transposed=True
            )
        return specs


def _sliding(attributes: Attributes, n_layers: int) -> tuple[bool, ...]:
    """For each layer, whether it has sliding attention. `attention_types` is a short form of `attention_layers`."""
    absent: list[Any] = [[["global", "local"], 12]]
    short = attributes.take("attention_types", list, absent, null=absent)
    fits = sum(len(kinds) * times for kinds, times in short) == n_layers
    types: list[Any] = [kind for kinds, times in short for kind in kinds * times] if fits else []
    layers: list[Any] = attributes.take("attention_layers", list, types)
    if short != absent and layers != types:
        attributes.require("attention_layers", types, "attention_types says so")
    if len(layers) != n_layers or not all(kind in SLIDES_BY_TYPE for kind in layers):
        attributes.require("attention_types", None, f"each of {n_layers} layers is 'global' or 'local'")
    return tuple(SLIDES_BY_TYPE[kind] for kind in layers)
