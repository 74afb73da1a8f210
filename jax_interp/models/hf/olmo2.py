"""OLMo 2: norms after attention and MLP instead of before, and of all heads' queries and keys."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, Tensor
from jax_interp.models.hf.llama import read_like, tensors_like, write_like

AFTER = {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"}


def read(attributes: Attributes) -> Config:
    attributes.require("clip_qkv", None, "OLMo 2 does not clip queries, keys and values")
    bias = attributes.take("attention_bias", False)
    like = read_like(attributes, eps=1e-5)
    return Config(**like, norm_places="after", qk_norm="all heads", qkv_bias=bias, out_bias=bias)


def write(config: Config) -> dict[str, Any]:
    return write_like(config) | {"attention_bias": config.qkv_bias}


def tensors(config: Config) -> dict[str, Tensor]:
    return tensors_like(config, norms=AFTER)


OLMO2 = Family(
    model_type="olmo2",
    architecture="Olmo2ForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors,
)
