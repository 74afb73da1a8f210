"""Qwen 2 and 2.5: Llama with biases of queries, keys and values. Later layers may have sliding attention."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.llama import Llama
from jax_interp.models.hf.shared_attributes import read_layer_types, write_layer_types


@FAMILIES.register
class Qwen2(Llama):
    """Checkpoints whose `model_type` is "qwen2"."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"
    default_n_ctx = 32768
    default_kv_heads = 32

    def read_shared(self, attributes: Attributes) -> dict[str, Any]:
        """As in Llama, with the layers that have sliding attention."""
        shared = super().read_shared(attributes)
        first, window = (
            attributes.take("max_window_layers", int, 28),
            attributes.take("sliding_window", int, 4096, null=None),
        )
        window = window if attributes.take("use_sliding_window", bool, False) else None
        slides = lambda i: window is not None and i >= first
        return shared | read_layer_types(attributes, shared["n_layers"], window, slides)

    def write_shared(self, config: Config) -> dict[str, Any]:
        values = super().write_shared(config) | {"use_sliding_window": bool(config.sliding)}
        if config.sliding:
            values |= write_layer_types(config) | {"max_window_layers": config.sliding.index(True)}
        return values

    def read(self, attributes: Attributes) -> Config:
        return Config(**self.read_shared(attributes), qkv_bias=True)

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config)
