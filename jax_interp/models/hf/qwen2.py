"""Qwen 2 and 2.5: Llama with biases for queries, keys and values, and maybe a sliding window in the later layers."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family
from jax_interp.models.hf.llama import read_like, tensors_like, write_like
from jax_interp.models.hf.sliding import read_layer_types, write_layer_types


def read_layers(attributes: Attributes) -> dict[str, Any]:
    """Like Llama's, with Qwen's windows."""
    like = read_like(attributes, n_ctx=32768)
    used, first = attributes.take("use_sliding_window", False), attributes.take("max_window_layers", 28)
    windows = read_layer_types(attributes, like["n_layers"], lambda i: i >= first)
    return like | (windows if used else {})


def write_layers(config: Config) -> dict[str, Any]:
    values = write_like(config) | {"use_sliding_window": bool(config.sliding)}
    if config.sliding:
        values |= write_layer_types(config) | {"max_window_layers": config.sliding.index(True)}
    return values


def read(attributes: Attributes) -> Config:
    return Config(**read_layers(attributes), qkv_bias=True)


QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    base="model.",
    read=read,
    write=write_layers,
    tensors=tensors_like,
)
