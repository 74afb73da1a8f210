"""TransformerLens's research models (attention-only, SoLU, GELU), also with folded norms (LNPre, RMSPre).

The directory has the dict of a `HookedTransformerConfig` as `config.json`, and the state dict of the model, with
TransformerLens's names, as safetensors.
"""

from __future__ import annotations

import math
from typing import Any

from jax_interp.core.rotary import Rope
from jax_interp.models.config import Activation, Config, NormKind, Positions
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES, Family
from jax_interp.models.hf.tensors import TensorSpec

NORMS: dict[str, tuple[NormKind, bool]] = {
    "LN": ("layernorm", True),
    "LNPre": ("layernorm", False),
    "RMS": ("rmsnorm", True),
    "RMSPre": ("rmsnorm", False),
    "none": ("none", True),
}
ACTIVATIONS: dict[str, tuple[Activation, bool]] = {
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gelu_new": ("gelu_tanh", False),
    "gelu_fast": ("gelu_tanh", False),
    "silu": ("silu", False),
    "solu": ("solu", False),
    "solu_ln": ("solu", True),
}
POSITIONS: dict[str, Positions] = {"standard": "learned", "rotary": "rotary", "alibi": "alibi"}
ONLY: dict[str, tuple[object, str]] = {
    "attention_dir": ("causal", "in a decoder no token sees those after it"),
    "gated_mlp": (False, "gated MLPs in this layout are not built"),
    "use_local_attn": (False, "all layers attend to everything"),
    "final_rms": (False, "the final norm is of the same kind as the others"),
    "post_embedding_ln": (False, "a norm after the embedding is not built"),
    "scale_attn_by_inverse_layer_idx": (False, "scores have the same scale in all layers"),
    "use_NTK_by_parts_rope": (False, "scaled rotary frequencies are not built"),
    "use_normalization_before_and_after": (False, "norms stand before attention and MLP only"),
    "use_qk_norm": (False, "queries and keys have no norms"),
    "num_experts": (None, "mixtures of experts in this layout are not built"),
    "attn_types": (None, "all layers attend to everything"),
    "load_in_4bit": (False, "quantized weights are not read"),
    "attn_scores_soft_cap": (-1.0, "scores are not capped"),
    "output_logits_soft_cap": (-1.0, "logits are not capped"),
}
"""The attributes of features that are not built: the only value that is supported, and why."""
IRRELEVANT = (
    *("model_name", "tokenizer_name", "original_architecture", "from_checkpoint", "checkpoint_index", "device"),
    *("checkpoint_label_type", "checkpoint_value", "n_devices", "seed", "init_mode", "init_weights", "n_params"),
    *("use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_attn_in", "use_hook_tokens"),
    *("default_prepend_bos", "tokenizer_prepends_bos", "trust_remote_code", "ungroup_grouped_query_attention"),
    # attributes that are used only with an option that `read` refuses
    *("window_size", "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", "NTK_by_parts_factor"),
    *("NTK_original_ctx_len", "relative_attention_max_distance", "relative_attention_num_buckets", "norm_topk_prob"),
    *("experts_per_token", "rotary_base_local", "rmsnorm_uses_offset"),
    *("tie_word_embeddings", "uses_rms_norm"),  # the unembedding is stored, and normalization_type names the norm
)


@FAMILIES.register
class HookedTransformer(Family):
    """Checkpoints whose `model_type` is "hooked_transformer"."""

    model_type = "hooked_transformer"
    architecture = "HookedTransformer"
    prefix = ""
    head = "unembed"
    identifying = ("d_vocab", "n_layers")
    ignored = (r"blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos|alibi)",)

    def read(self, attributes: Attributes) -> Config:
        take, size, require = attributes.take, attributes.size, attributes.require
        attributes.ignore(*IRRELEVANT)
        for name, (value, why) in ONLY.items():
            require(name, value, why)
        d_model, vocab_size, d_head = size("d_model"), size("d_vocab"), size("d_head")
        n_heads = take("n_heads", int, d_model // d_head)
        n_heads = d_model // d_head if n_heads == -1 else n_heads  # -1: not given
        attn_only = take("attn_only", bool, False)
        if take("n_key_value_heads", int, n_heads, null=n_heads) != n_heads:
            require("n_key_value_heads", n_heads, "heads that share keys and values are not built")
        if take("d_vocab_out", int, -1) != -1:
            require("d_vocab_out", vocab_size, "the input and output vocabularies must have the same size")
        norm, affine = attributes.choose("normalization_type", NORMS, "LN", null="none")
        if attn_only:
            attributes.ignore("act_fn")
        act, mlp_norm = ACTIVATIONS["relu"] if attn_only else attributes.choose("act_fn", ACTIVATIONS)
        divisor = take("attn_scale", float, -1.0)
        divisor = (math.sqrt(d_head) if divisor == -1.0 else divisor) if take("use_attn_scale", bool, True) else 1.0
        rotary_dim = size("rotary_dim", d_head, null=d_head)
        adjacent, base = take("rotary_adjacent_pairs", bool, False), take("rotary_base", float, 10_000.0)
        positions = attributes.choose("positional_embedding_type", POSITIONS, "standard")
        parallel = take("parallel_attn_mlp", bool, False)
        d_mlp = size("d_mlp", 4 * d_model, null=4 * d_model)
        rope = Rope(base, None if rotary_dim == d_head else rotary_dim, adjacent=adjacent)
        return Config(
            n_layers=attributes.layers("n_layers"),
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_head,
            d_mlp=0 if attn_only else d_mlp,
            vocab_size=vocab_size,
            n_ctx=size("n_ctx"),
            act=act,
            gated_mlp=False,
            mlp_norm=mlp_norm,
            norm=norm,
            norm_affine=affine,
            norm_eps=take("eps", float, 1e-5),
            parallel="two norms" if parallel else "no",
            positions=positions,
            rope=rope if positions == "rotary" else Rope(),
            attn_scale=0.0 if divisor == math.sqrt(d_head) else 1.0 / divisor,
            qkv_bias=True,
            out_bias=True,
            mlp_bias=not attn_only,
            unembed_bias=True,
            tied_embedding=False,
        )

    def write(self, config: Config) -> dict[str, Any]:
        norms = {kind: name for name, kind in NORMS.items()}
        acts = {kind: name for name, kind in reversed(ACTIVATIONS.items())}
        positions = {ours: theirs for theirs, ours in POSITIONS.items()}
        return {
            "n_layers": config.n_layers,
            "d_model": config.d_model,
            "n_heads": config.n_heads,
            "n_key_value_heads": None if config.n_kv_heads == config.n_heads else config.n_kv_heads,
            "d_head": config.d_head,
            "d_mlp": config.d_mlp or None,
            "attn_only": not config.d_mlp,
            "d_vocab": config.vocab_size,
            "n_ctx": config.n_ctx,
            "act_fn": acts.get((config.act, config.mlp_norm), config.act),
            "normalization_type": None if config.norm == "none" else norms[config.norm, config.norm_affine],
            "eps": config.norm_eps,
            "positional_embedding_type": positions.get(config.positions, config.positions),
            "rotary_dim": config.rope.dim or config.d_head,
            "rotary_base": config.rope.base,
            "rotary_adjacent_pairs": config.rope.adjacent,
            "parallel_attn_mlp": config.parallel == "two norms",
            "use_attn_scale": config.attn_scale != 1.0,
            "attn_scale": 1.0 / config.attn_scale if config.attn_scale else math.sqrt(config.d_head),
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = {"embed.weight": TensorSpec("embed.W_E"), "unembed.weight": TensorSpec("unembed.W_U")}
        specs["unembed.bias"] = TensorSpec("unembed.b_U")
        if config.positions == "learned":
            specs["pos_embed.weight"] = TensorSpec("pos_embed.W_pos")
        for name in "qkv":
            for kind, letter in (("weight", "W"), ("bias", "b")):
                stored = TensorSpec(f"blocks.{{}}.attn.{letter}_{name.upper()}", heads=("out", config.n_heads))
                specs[f"blocks.*.attn.{name}.{kind}"] = stored
        specs["blocks.*.attn.o.weight"] = TensorSpec("blocks.{}.attn.W_O", heads=("in", config.n_heads))
        specs["blocks.*.attn.o.bias"] = TensorSpec("blocks.{}.attn.b_O")
        if config.d_mlp:
            for ours, theirs in (("up", "in"), ("down", "out")):
                specs[f"blocks.*.mlp.{ours}.weight"] = TensorSpec(f"blocks.{{}}.mlp.W_{theirs}")
                specs[f"blocks.*.mlp.{ours}.bias"] = TensorSpec(f"blocks.{{}}.mlp.b_{theirs}")
        norms = ["blocks.*.ln1", *(["blocks.*.ln2"] if config.d_mlp else []), "ln_final"]
        norms += ["blocks.*.mlp.ln"] if config.mlp_norm else []
        if config.norm != "none" and config.norm_affine:
            for norm in norms:
                theirs = norm.replace("*", "{}")
                specs[f"{norm}.weight"] = TensorSpec(f"{theirs}.w")
                if config.norm == "layernorm" or norm.endswith("mlp.ln"):
                    specs[f"{norm}.bias"] = TensorSpec(f"{theirs}.b")
        return specs
