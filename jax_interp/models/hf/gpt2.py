"""GPT-2: learned positions, LayerNorm, biases everywhere, an unembedding that is usually tied.

Weights are stored as `[in, out]`. Query, key and value are fused in one tensor.
"""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES, Family
from jax_interp.models.hf.shared_attributes import ACTIVATIONS, activation_name
from jax_interp.models.hf.tensors import Columns, TensorSpec

SUMMARY = tuple(f"summary_{name}" for name in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj"))
"""Attributes of a classification head. The configs of language models have them too."""


@FAMILIES.register
class GPT2(Family):
    """Checkpoints whose `model_type` is "gpt2"."""

    model_type = "gpt2"
    architecture = "GPT2LMHeadModel"
    prefix = "transformer."
    ignored = (r"h\.\d+\.attn\.(masked_)?bias",)  # causal masks

    def read(self, attributes: Attributes) -> Config:
        take = attributes.take
        attributes.require("scale_attn_weights", True, "attention scores are divided by sqrt(d_head)")
        attributes.require("scale_attn_by_inverse_layer_idx", False, "scores have one scale in all layers")
        attributes.require("add_cross_attention", False, "a decoder has no encoder to attend to")
        # reorder_and_upcast_attn: scores are float32 here for every dtype, so both settings give the same model.
        attributes.ignore("attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "n_ctx", *SUMMARY)
        d_model = attributes.size("n_embd")
        return Config(
            n_layers=attributes.layers("n_layer"),
            d_model=d_model,
            n_heads=attributes.size("n_head"),
            d_mlp=attributes.size("n_inner", 4 * d_model, null=4 * d_model),
            vocab_size=attributes.size("vocab_size"),
            n_ctx=attributes.size("n_positions"),
            act=attributes.choose("activation_function", ACTIVATIONS, "gelu_new"),
            gated_mlp=False,
            norm="layernorm",
            norm_eps=take("layer_norm_epsilon", float, 1e-5),
            positions="learned",
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            tied_embedding=take("tie_word_embeddings", bool, True),
        )

    def write(self, config: Config) -> dict[str, Any]:
        return {
            "n_layer": config.n_layers,
            "n_embd": config.d_model,
            "n_head": config.n_heads,
            "n_inner": config.d_mlp,
            "vocab_size": config.vocab_size,
            "n_positions": config.n_ctx,
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
            for ours, theirs in (
                ("ln1", "ln_1"),
                ("ln2", "ln_2"),
                ("attn.o", "attn.c_proj"),
                ("mlp.down", "mlp.c_proj"),
            ):
                specs[f"blocks.*.{ours}.{kind}"] = TensorSpec(f"h.{{}}.{theirs}.{kind}")
            specs[f"blocks.*.mlp.up.{kind}"] = TensorSpec(f"h.{{}}.mlp.c_fc.{kind}")
            for i, name in enumerate("qkv"):
                columns = Columns(i * config.d_model, config.d_model, 3 * config.d_model)
                specs[f"blocks.*.attn.{name}.{kind}"] = TensorSpec(f"h.{{}}.attn.c_attn.{kind}", columns=columns)
        return specs
