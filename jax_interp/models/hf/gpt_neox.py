"""GPT-NeoX and Pythia: parallel blocks with two LayerNorms, a quarter of each head rotated, biases everywhere.

One tensor contains query, key and value of each head next to each other.
"""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES, Family
from jax_interp.models.hf.shared_attributes import ACTIVATIONS, activation_name, read_rope, write_rope
from jax_interp.models.hf.tensors import Columns, TensorSpec


@FAMILIES.register
class GPTNeoX(Family):
    """Checkpoints whose `model_type` is "gpt_neox"."""

    model_type = "gpt_neox"
    architecture = "GPTNeoXForCausalLM"
    prefix = "gpt_neox."
    head = "embed_out"
    ignored = (r"layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)",)

    def read(self, attributes: Attributes) -> Config:
        take, size = attributes.take, attributes.size
        attributes.ignore("hidden_dropout")
        d_model, n_heads = size("hidden_size"), size("num_attention_heads")
        n_ctx = size("max_position_embeddings", 2048)
        bias = take("attention_bias", bool, True)
        return Config(
            n_layers=attributes.layers("num_hidden_layers"),
            d_model=d_model,
            n_heads=n_heads,
            d_mlp=size("intermediate_size"),
            vocab_size=size("vocab_size"),
            n_ctx=n_ctx,
            act=attributes.choose("hidden_act", ACTIVATIONS, "gelu"),
            gated_mlp=False,
            norm="layernorm",
            norm_eps=take("layer_norm_eps", float, 1e-5),
            parallel="two norms" if take("use_parallel_residual", bool, True) else "no",
            rope=read_rope(attributes, d_model // n_heads, n_ctx, part=0.25, names=("rotary_emb_base", "rotary_pct")),
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=True,
            tied_embedding=take("tie_word_embeddings", bool, False),
        )

    def write(self, config: Config) -> dict[str, Any]:
        part = (config.rope.dim or config.d_head) / config.d_head
        return {
            "num_hidden_layers": config.n_layers,
            "hidden_size": config.d_model,
            "num_attention_heads": config.n_heads,
            "intermediate_size": config.d_mlp,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.n_ctx,
            "hidden_act": activation_name(config.act),
            "layer_norm_eps": config.norm_eps,
            "use_parallel_residual": config.parallel == "two norms",
            "rope_parameters": write_rope(config.rope, config.d_head) | {"partial_rotary_factor": part},
            "rotary_pct": part,
            "rotary_emb_base": config.rope.base,
            "attention_bias": config.qkv_bias,
            "tie_word_embeddings": config.tied_embedding,
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = {"embed.weight": TensorSpec("embed_in.weight")}
        if not config.tied_embedding:
            specs["unembed.weight"] = TensorSpec("embed_out.weight", transposed=True)
        for kind in ("weight", "bias"):
            is_weight = kind == "weight"
            specs[f"ln_final.{kind}"] = TensorSpec(f"final_layer_norm.{kind}")
            specs[f"blocks.*.ln1.{kind}"] = TensorSpec(f"layers.{{}}.input_layernorm.{kind}")
            specs[f"blocks.*.ln2.{kind}"] = TensorSpec(f"layers.{{}}.post_attention_layernorm.{kind}")
            specs[f"blocks.*.mlp.up.{kind}"] = TensorSpec(f"layers.{{}}.mlp.dense_h_to_4h.{kind}", is_weight)
            specs[f"blocks.*.mlp.down.{kind}"] = TensorSpec(f"layers.{{}}.mlp.dense_4h_to_h.{kind}", is_weight)
            if is_weight or config.qkv_bias:
                specs[f"blocks.*.attn.o.{kind}"] = TensorSpec(f"layers.{{}}.attention.dense.{kind}", is_weight)
                for i, name in enumerate("qkv"):
                    columns = Columns(i * config.d_head, config.d_head, 3 * config.d_head, groups=config.n_heads)
                    fused = f"layers.{{}}.attention.query_key_value.{kind}"
                    specs[f"blocks.*.attn.{name}.{kind}"] = TensorSpec(fused, is_weight, columns)
        return specs
