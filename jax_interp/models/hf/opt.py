"""OPT: GPT-2 with ReLU. The first two rows of its learned positions are not used."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES, Family
from jax_interp.models.hf.shared_attributes import ACTIVATIONS, activation_name
from jax_interp.models.hf.tensors import TensorSpec


@FAMILIES.register
class OPT(Family):
    """Checkpoints whose `model_type` is "opt"."""

    model_type = "opt"
    architecture = "OPTForCausalLM"
    prefix = "model.decoder."

    def read(self, attributes: Attributes) -> Config:
        take, size = attributes.take, attributes.size
        attributes.ignore("dropout", "activation_dropout", "layerdrop", "init_std")
        attributes.require("do_layer_norm_before", True, "norms after the residual sums (OPT-350m) are not built")
        attributes.require("_remove_final_layer_norm", False, "a norm stands before the unembedding")
        attributes.require("layer_norm_elementwise_affine", True, "norms have weights")
        d_model, bias = size("hidden_size"), take("enable_bias", bool, True)
        if size("word_embed_proj_dim", d_model, null=d_model) != d_model:
            attributes.require("word_embed_proj_dim", d_model, "embeddings have the width of the residual stream")
        return Config(
            n_layers=attributes.layers("num_hidden_layers"),
            d_model=d_model,
            n_heads=size("num_attention_heads"),
            d_mlp=size("ffn_dim"),
            vocab_size=size("vocab_size"),
            n_ctx=size("max_position_embeddings", 2048),
            act=attributes.choose("activation_function", ACTIVATIONS, "relu"),
            gated_mlp=False,
            norm="layernorm",
            positions="learned",
            position_offset=2,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bias,
            tied_embedding=take("tie_word_embeddings", bool, True),
        )

    def write(self, config: Config) -> dict[str, Any]:
        return {
            "num_hidden_layers": config.n_layers,
            "hidden_size": config.d_model,
            "word_embed_proj_dim": config.d_model,
            "num_attention_heads": config.n_heads,
            "ffn_dim": config.d_mlp,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.n_ctx,
            "activation_function": activation_name(config.act),
            "do_layer_norm_before": True,
            "enable_bias": config.qkv_bias,
            "tie_word_embeddings": config.tied_embedding,
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = {
            "embed.weight": TensorSpec("embed_tokens.weight"),
            "pos_embed.weight": TensorSpec("embed_positions.weight"),
        }
        if not config.tied_embedding:
            specs["unembed.weight"] = TensorSpec("lm_head.weight", transposed=True)
        linears = {"attn.o": "self_attn.out_proj", "mlp.up": "fc1", "mlp.down": "fc2"}
        linears |= {f"attn.{name}": f"self_attn.{name}_proj" for name in "qkv"}
        for kind in ("weight", "bias"):
            specs[f"ln_final.{kind}"] = TensorSpec(f"final_layer_norm.{kind}")
            specs[f"blocks.*.ln1.{kind}"] = TensorSpec(f"layers.{{}}.self_attn_layer_norm.{kind}")
            specs[f"blocks.*.ln2.{kind}"] = TensorSpec(f"layers.{{}}.final_layer_norm.{kind}")
            for ours, theirs in linears.items():
                if kind == "weight" or config.qkv_bias:
                    specs[f"blocks.*.{ours}.{kind}"] = TensorSpec(
                        f"layers.{{}}.{theirs}.{kind}", transposed=kind == "weight"
                    )
        return specs
