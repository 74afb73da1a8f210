"""Qwen 3: Qwen 2 with a norm of each head's queries and keys, and without biases by default."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.qwen2 import Qwen2


@FAMILIES.register
class Qwen3(Qwen2):
    """Checkpoints whose `model_type` is "qwen3"."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"
    default_d_head = 128

    def read(self, attributes: Attributes) -> Config:
        bias = attributes.take("attention_bias", bool, False)
        return Config(**self.read_shared(attributes), qk_norm="head", qkv_bias=bias, out_bias=bias)

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config) | {"attention_bias": config.qkv_bias}
