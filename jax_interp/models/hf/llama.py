"""Llama 1 to 3: rotary positions, RMSNorm, a gated MLP, grouped key/value heads. Weights are stored as `[out, in]`.

Most later families use the same names of attributes and tensors. They derive from `Llama` and override the differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from jax_interp.core.rotary import Rope
from jax_interp.models.config import Activation, Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES, Family
from jax_interp.models.hf.shared_attributes import ACTIVATIONS, activation_name, read_rope, write_rope
from jax_interp.models.hf.tensors import TensorSpec

ATTENTION = {name: f"self_attn.{name}_proj" for name in "qkvo"}
MLP = {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}


@FAMILIES.register
class Llama(Family):
    """Checkpoints whose `model_type` is "llama"."""

    model_type = "llama"
    architecture = "LlamaForCausalLM"
    prefix = "model."
    eps_name: ClassVar[str] = "rms_norm_eps"
    """The attribute with `norm_eps`."""
    ignored = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)

    # The defaults of a family for attributes that are missing in its `config.json`.
    default_n_ctx: ClassVar[int] = 2048
    default_rope_base: ClassVar[float] = 10_000.0
    default_rotated_part: ClassVar[float | None] = None
    """The part of a head's features that is rotated. None: all of them, in every model of the family."""
    default_norm_eps: ClassVar[float] = 1e-6
    default_tied: ClassVar[bool] = False
    default_kv_heads: ClassVar[int | None] = None
    """None: as many as query heads."""
    default_d_head: ClassVar[int | None] = None
    """None: d_model / n_heads."""
    default_act: ClassVar[str] = "silu"

    norms: ClassVar[Mapping[str, str]] = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
    """The norms of a block, and their stored names."""
    projections: ClassVar[Mapping[str, str]] = ATTENTION | MLP
    """The linear maps of a block, and their stored names."""

    def read_shared(self, attributes: Attributes) -> dict[str, Any]:
        """The fields of `Config` that all these families read in the same way."""
        take, size = attributes.take, attributes.size
        d_model, n_heads = size("hidden_size"), size("num_attention_heads")
        d_head = size("head_dim", self.default_d_head or d_model // n_heads, null=d_model // n_heads)
        n_ctx = size("max_position_embeddings", self.default_n_ctx)
        return {
            "n_layers": attributes.layers("num_hidden_layers"),
            "d_model": d_model,
            "n_heads": n_heads,
            "n_kv_heads": size("num_key_value_heads", self.default_kv_heads or n_heads, null=n_heads),
            "d_head": d_head,
            "d_mlp": size("intermediate_size"),
            "vocab_size": size("vocab_size"),
            "n_ctx": n_ctx,
            "act": self.read_act(attributes),
            "norm_eps": take(self.eps_name, float, self.default_norm_eps),
            "rope": self.read_rope(attributes, d_head, n_ctx),
            "tied_embedding": take("tie_word_embeddings", bool, self.default_tied),
        }

    def read_act(self, attributes: Attributes) -> Activation:
        """The activation of the MLP."""
        return attributes.choose("hidden_act", ACTIVATIONS, self.default_act)

    def read_rope(self, attributes: Attributes, d_head: int, n_ctx: int) -> Rope:
        """The rotation of the layers that attend to everything."""
        return read_rope(attributes, d_head, n_ctx, base=self.default_rope_base, part=self.default_rotated_part)

    def write_shared(self, config: Config) -> dict[str, Any]:
        """The attributes that all these families write in the same way."""
        return {
            "num_hidden_layers": config.n_layers,
            "hidden_size": config.d_model,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads,
            "head_dim": config.d_head,
            "intermediate_size": config.d_mlp,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.n_ctx,
            "hidden_act": activation_name(config.act),
            self.eps_name: config.norm_eps,
            "rope_parameters": write_rope(config.rope, config.d_head),
            "rope_theta": config.rope.base,
            "tie_word_embeddings": config.tied_embedding,
        }

    def read(self, attributes: Attributes) -> Config:
        attributes.ignore("pretraining_tp")  # how matrix products were split in training; the results are the same
        bias = attributes.take("attention_bias", bool, False)
        mlp_bias = attributes.take("mlp_bias", bool, False)
        return Config(**self.read_shared(attributes), qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        kinds = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
        specs = {"embed.weight": TensorSpec("embed_tokens.weight")}
        specs |= {f"ln_final.{kind}": TensorSpec(f"norm.{kind}") for kind in kinds}
        if not config.tied_embedding:
            specs["unembed.weight"] = TensorSpec("lm_head.weight", transposed=True)
        if config.unembed_bias:
            specs["unembed.bias"] = TensorSpec("lm_head.bias")
        for ours, theirs in self.norms.items():
            specs |= {f"blocks.*.{ours}.{kind}": TensorSpec(f"layers.{{}}.{theirs}.{kind}") for kind in kinds}
        if config.qk_norm != "no":
            for x in "qk":
                specs[f"blocks.*.attn.{x}_norm.weight"] = TensorSpec(f"layers.{{}}.self_attn.{x}_norm.weight")
        for ours, theirs in self.projections.items():
            part, biased = "mlp", config.mlp_bias
            if ours in "qkvo":
                part, biased = "attn", config.out_bias if ours == "o" else config.qkv_bias
            specs[f"blocks.*.{part}.{ours}.weight"] = TensorSpec(f"layers.{{}}.{theirs}.weight", transposed=True)
            if biased:
                specs[f"blocks.*.{part}.{ours}.bias"] = TensorSpec(f"layers.{{}}.{theirs}.bias")
        return specs
