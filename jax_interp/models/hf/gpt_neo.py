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
        take = attributes.take
        attributes.ignore("embed_dropout", "resid_dropout", "classifier_dropout", *SUMMARY)
        attributes.require("tie_word_embeddings", True, "GPT-Neo's unembedding is its embedding")
        n_layers, d_model = take("num_layers"), take("hidden_size")
        types = take("attention_types", [[["global", "local"], n_layers // 2]])
        layers = take("attention_layers", [kind for kinds, times in types for kind in kinds * times])
        sliding = tuple(SLIDES_BY_TYPE[kind] for kind in layers)
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
            "tie_word_embeddings": True,
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = {"embed.weight": TensorSpec("wte.weight"), "pos_embed.weight": TensorSpec("wpe.weight")}
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
