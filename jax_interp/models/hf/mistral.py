"""Mistral: Llama with attention to a sliding window in every layer."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family
from jax_interp.models.hf.llama import read_like, tensors_like, write_like


def read_windowed(attributes: Attributes, **defaults: Any) -> dict[str, Any]:
    """Like Llama's, with `sliding_window` for all layers; null: none slides."""
    like = read_like(attributes, **defaults)
    if window := attributes.take("sliding_window", 0):
        like |= {"window": window, "sliding": (True,) * like["n_layers"]}
    return like


def write_windowed(config: Config) -> dict[str, Any]:
    return write_like(config) | {"sliding_window": config.window or None}


def read(attributes: Attributes) -> Config:
    return Config(**read_windowed(attributes, n_ctx=4096 * 32))


MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    base="model.",
    read=read,
    write=write_windowed,
    tensors=tensors_like,
)
