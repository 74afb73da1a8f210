"""Mistral: Llama with sliding attention in every layer."""

from __future__ import annotations

from typing import Any, ClassVar

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.llama import Llama
from jax_interp.models.hf.shared_attributes import windows_of


@FAMILIES.register
class Mistral(Llama):
    """Checkpoints whose `model_type` is "mistral"."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"
    default_n_ctx = 4096 * 32
    default_kv_heads = 8
    default_window: ClassVar[int | None] = 4096
    """The window of a file without `sliding_window`. None: no layer has sliding attention."""

    def read_shared(self, attributes: Attributes) -> dict[str, Any]:
        """As in Llama, with `sliding_window` for all layers. Null: no layer has sliding attention."""
        shared = super().read_shared(attributes)
        window = attributes.take("sliding_window", int, self.default_window, null=None)
        return shared | windows_of(window, (window is not None,) * shared["n_layers"])

    def write_shared(self, config: Config) -> dict[str, Any]:
        return super().write_shared(config) | {"sliding_window": config.window or None}

    def read(self, attributes: Attributes) -> Config:
        return Config(**self.read_shared(attributes))

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config)
