"""Gemma 2: norms around attention and MLP, sliding and full attention in turn, softcaps."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, Tensor
from jax_interp.models.hf.gemma import read_gemma, write_gemma
from jax_interp.models.hf.llama import tensors_like
from jax_interp.models.hf.sliding import read_layer_types, write_layer_types

AROUND = {
    "ln1": "input_layernorm",
    "ln1_post": "post_attention_layernorm",
    "ln2": "pre_feedforward_layernorm",
    "ln2_post": "post_feedforward_layernorm",
}


def read_capped(attributes: Attributes, softcaps: tuple[float, float]) -> dict[str, Any]:
    """What Gemma 2 and 3 share besides; `softcaps` are those of scores and of logits where attributes are absent."""
    return {
        "norm_places": "around",
        "attn_scale": attributes.take("query_pre_attn_scalar", 256) ** -0.5,
        "attn_softcap": float(attributes.take("attn_logit_softcapping", softcaps[0])),
        "logit_softcap": float(attributes.take("final_logit_softcapping", softcaps[1])),
    }


def write_capped(config: Config) -> dict[str, Any]:
    scalar = config.attn_scale**-2 if config.attn_scale else config.d_head
    return {
        "query_pre_attn_scalar": round(scalar) if round(scalar) ** -0.5 == config.attn_scale else scalar,
        "attn_logit_softcapping": config.attn_softcap or None,
        "final_logit_softcapping": config.logit_softcap or None,
    }


def tensors(config: Config) -> dict[str, Tensor]:
    return tensors_like(config, norms=AROUND)


def read(attributes: Attributes) -> Config:
    attributes.ignore("cache_implementation")
    like = read_gemma(attributes)
    windows = read_layer_types(attributes, like["n_layers"], lambda i: i % 2 == 0)
    return Config(**like, **windows, **read_capped(attributes, (50.0, 30.0)))


def write(config: Config) -> dict[str, Any]:
    return write_gemma(config) | write_capped(config) | write_layer_types(config)


GEMMA2 = Family(
    model_type="gemma2",
    architecture="Gemma2ForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors,
)
