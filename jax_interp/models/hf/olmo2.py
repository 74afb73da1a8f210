"""OLMo 2: Llama with norms after attention and MLP instead of before, and norms of queries and keys over all heads."""

from __future__ import annotations

from typing import Any, ClassVar

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.llama import Llama


@FAMILIES.register
class OLMo2(Llama):
    """Checkpoints whose `model_type` is "olmo2"."""

    model_type = "olmo2"
    architecture = "Olmo2ForCausalLM"
    default_norm_eps = 1e-5
    norms: ClassVar = {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"}

    def read(self, attributes: Attributes) -> Config:
        attributes.require("clip_qkv", None, "OLMo 2 does not clip queries, keys and values")
        bias = attributes.take("attention_bias", bool, False)
        shared = self.read_shared(attributes)
        return Config(**shared, norm_places="after", qk_norm="all heads", qkv_bias=bias, out_bias=bias)

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config) | {"attention_bias": config.qkv_bias}
