"""Mistral: Llama with sliding attention in every layer."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.llama import Llama


@FAMILIES.register
class Mistral(Llama):
    """Checkpoints whose `model_type` is "mistral"."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    default_n_ctx = 4096 * 32

    def read_shared(self, attributes: Attributes) -> dict[str, Any]:
        """As in Llama, with `sliding_window` for all layers. Null: no layer has sliding attention."""
        shared = super().read_shared(attributes)
        if window := attributes.take("sliding_window", 0):
            shared |= {"window": window, "sliding": (True,) * shared["n_layers"]}
        return shared

    def write_shared(self, config: Config) -> dict[str, Any]:
        return super().write_shared(config) | {"sliding_window": config.window or None}

    def read(self, attributes: Attributes) -> Config:
        return Config(**self.read_shared(attributes))

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config)
