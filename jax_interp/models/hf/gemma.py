"""Gemma 1: Llama with embeddings scaled by sqrt(d_model), norm weights stored minus one, and a tied unembedding."""

from __future__ import annotations

import math
from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.llama import Llama
from jax_interp.models.hf.shared_attributes import ACTIVATIONS


@FAMILIES.register
class Gemma(Llama):
    """Checkpoints whose `model_type` is "gemma"."""

    model_type = "gemma"
    architecture = "GemmaForCausalLM"
    default_n_ctx = 8192
    default_tied = True

    def read_shared(self, attributes: Attributes) -> dict[str, Any]:
        """The fields of `Config` that all Gemma families read in the same way."""
        attributes.require("use_bidirectional_attention", False, "in a decoder no token sees those after it")
        bias = attributes.take("attention_bias", False)
        # Older files have hidden_act="gelu", but the models use the approximation that hidden_activation names.
        act = attributes.choose("hidden_activation", ACTIVATIONS, attributes.take("hidden_act", "gelu_pytorch_tanh"))
        shared = super().read_shared(attributes)
        return shared | {
            "act": act,
            "qkv_bias": bias,
            "out_bias": bias,
            "norm_offset": True,
            "embed_scale": math.sqrt(shared["d_model"]),
        }

    def write_shared(self, config: Config) -> dict[str, Any]:
        values = super().write_shared(config)
        return values | {"hidden_activation": values["hidden_act"], "attention_bias": config.qkv_bias}

    def read(self, attributes: Attributes) -> Config:
        return Config(**self.read_shared(attributes))

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config)
