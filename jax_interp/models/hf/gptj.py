"""GPT-J: parallel blocks with one LayerNorm, rotary pairs of adjacent features, no biases in attention."""

from __future__ import annotations

from typing import Any

from jax_interp.core.rotary import Rope
from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES, Family
from jax_interp.models.hf.gpt2 import SUMMARY
from jax_interp.models.hf.shared_attributes import ACTIVATIONS, activation_name
from jax_interp.models.hf.tensors import TensorSpec


@FAMILIES.register
class GPTJ(Family):
    """Checkpoints whose `model_type` is "gptj"."""

    model_type = "gptj"
    architecture = "GPTJForCausalLM"
    prefix = "transformer."
    ignored = (r"h\.\d+\.attn\.(masked_)?bias", r"h\.\d+\.attn\.embed_positions")

    def read(self, attributes: Attributes) -> Config:
        take, size = attributes.take, attributes.size
        attributes.ignore("attn_pdrop", "embd_pdrop", "resid_pdrop", "scale_attn_weights", "rotary", *SUMMARY)
        attributes.require("tie_word_embeddings", False, "GPT-J has an unembedding of its own, with a bias")
        d_model, n_heads = size("n_embd"), size("n_head")
        dim = size("rotary_dim", 64)
        return Config(
            n_layers=attributes.layers("n_layer"),
            d_model=d_model,
            n_heads=n_heads,
            d_mlp=size("n_inner", 4 * d_model, null=4 * d_model),
            vocab_size=size("vocab_size"),
            n_ctx=size("n_positions"),
            act=attributes.choose("activation_function", ACTIVATIONS, "gelu_new"),
            gated_mlp=False,
            norm="layernorm",
            norm_eps=take("layer_norm_epsilon", float, 1e-5),
            parallel="one norm",
            rope=Rope(dim=None if dim == d_model // n_heads else dim, adjacent=True),
            mlp_bias=True,
            unembed_bias=True,
            tied_embedding=False,
        )

    def write(self, config: Config) -> dict[str, Any]:
        return {
            "n_layer": config.n_layers,
            "n_embd": config.d_model,
            "n_head": config.n_heads,
            "n_inner": config.d_mlp,
            "vocab_size": config.vocab_size,
            "n_positions": config.n_ctx,
            "rotary_dim": config.rope.dim or config.d_head,
            "activation_function": activation_name(config.act, tanh="gelu_new"),
            "layer_norm_epsilon": config.norm_eps,
            "tie_word_embeddings": False,
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = {"embed.weight": TensorSpec("wte.weight")}
        for kind in ("weight", "bias"):
            specs[f"unembed.{kind}"] = TensorSpec(f"lm_head.{kind}", transposed=kind == "weight")
            specs[f"ln_final.{kind}"] = TensorSpec(f"ln_f.{kind}")
            specs[f"blocks.*.ln1.{kind}"] = TensorSpec(f"h.{{}}.ln_1.{kind}")
            for ours, theirs in (("up", "fc_in"), ("down", "fc_out")):
                specs[f"blocks.*.mlp.{ours}.{kind}"] = TensorSpec(
                    f"h.{{}}.mlp.{theirs}.{kind}", transposed=kind == "weight"
                )
        for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
            specs[f"blocks.*.attn.{ours}.weight"] = TensorSpec(f"h.{{}}.attn.{theirs}.weight", transposed=True)
        return specs
