"""GPT-NeoX and Pythia: parallel blocks of two LayerNorms, a quarter of each head rotated, biases everywhere; query, key
and value of each head side by side in one tensor."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.activations import ACTIVATIONS, name_of
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Columns, Family, Tensor
from jax_interp.models.hf.rope import read_rope, write_rope


def read(attributes: Attributes) -> Config:
    take = attributes.take
    attributes.ignore("hidden_dropout", "is_decoder")
    d_model, n_heads, n_ctx = take("hidden_size"), take("num_attention_heads"), take("max_position_embeddings", 2048)
    bias = take("attention_bias", True)
    return Config(
        n_layers=take("num_hidden_layers"),
        d_model=d_model,
        n_heads=n_heads,
        d_mlp=take("intermediate_size"),
        vocab_size=take("vocab_size"),
        n_ctx=n_ctx,
        act=attributes.choose("hidden_act", ACTIVATIONS, "gelu"),
        gated_mlp=False,
        norm="layernorm",
        norm_eps=take("layer_norm_eps", 1e-5),
        parallel="two norms" if take("use_parallel_residual", True) else "no",
        rope=read_rope(attributes, d_model // n_heads, n_ctx, part=0.25),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        tied_embedding=take("tie_word_embeddings", False),
    )


def write(config: Config) -> dict[str, Any]:
    part = (config.rope.dim or config.d_head) / config.d_head
    return {
        "num_hidden_layers": config.n_layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_mlp,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.n_ctx,
        "hidden_act": name_of(config.act),
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel == "two norms",
        "rope_parameters": write_rope(config.rope, config.d_head) | {"partial_rotary_factor": part},
        "rotary_pct": part,
        "rotary_emb_base": config.rope.base,
        "attention_bias": config.qkv_bias,
        "tie_word_embeddings": config.tied_embedding,
    }


def tensors(config: Config) -> dict[str, Tensor]:
    found = {"embed.weight": Tensor("embed_in.weight")}
    if not config.tied_embedding:
        found["unembed.weight"] = Tensor("embed_out.weight", transposed=True)
    for kind in ("weight", "bias"):
        turned = kind == "weight"
        found[f"ln_final.{kind}"] = Tensor(f"final_layer_norm.{kind}")
        found[f"blocks.*.ln1.{kind}"] = Tensor(f"layers.{{}}.input_layernorm.{kind}")
        found[f"blocks.*.ln2.{kind}"] = Tensor(f"layers.{{}}.post_attention_layernorm.{kind}")
        found[f"blocks.*.mlp.up.{kind}"] = Tensor(f"layers.{{}}.mlp.dense_h_to_4h.{kind}", turned)
        found[f"blocks.*.mlp.down.{kind}"] = Tensor(f"layers.{{}}.mlp.dense_4h_to_h.{kind}", turned)
        if turned or config.qkv_bias:
            found[f"blocks.*.attn.o.{kind}"] = Tensor(f"layers.{{}}.attention.dense.{kind}", turned)
            for i, name in enumerate("qkv"):
                columns = Columns(i * config.d_head, config.d_head, 3 * config.d_head, groups=config.n_heads)
                fused = f"layers.{{}}.attention.query_key_value.{kind}"
                found[f"blocks.*.attn.{name}.{kind}"] = Tensor(fused, turned, columns)
    return found


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    base="gpt_neox.",
    read=read,
    write=write,
    tensors=tensors,
    head="embed_out",
    ignored=(r"layers\.\d+\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)",),
)
