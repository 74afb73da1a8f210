"""Qwen 3: each head's queries and keys are normed; no biases by default."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family
from jax_interp.models.hf.llama import tensors_like
from jax_interp.models.hf.qwen2 import read_layers, write_layers


def read(attributes: Attributes) -> Config:
    bias = attributes.take("attention_bias", False)
    like = read_layers(attributes)
    return Config(**like, qk_norm="head", qkv_bias=bias, out_bias=bias)


def write(config: Config) -> dict[str, Any]:
    return write_layers(config) | {"attention_bias": config.qkv_bias}


QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors_like,
)
