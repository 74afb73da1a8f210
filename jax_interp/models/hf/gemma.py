"""Gemma 1: Llama with embeddings scaled by sqrt(d_model), norm weights stored minus one, and a tied unembedding."""

from __future__ import annotations

import math
from typing import Any

from jax_interp.models.config import Activation, Config
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
    default_kv_heads = 16
    default_d_head = 256
    default_act = "gelu_pytorch_tanh"

    def read_act(self, attributes: Attributes) -> Activation:
        # The first files have hidden_act="gelu", but the models were always trained with the approximation.
        legacy: dict[str, Activation] = {"gelu": "gelu_tanh"}
        act = attributes.choose("hidden_act", ACTIVATIONS | legacy, self.default_act)
        names = [name for name, known in ACTIVATIONS.items() if known == act]
        if attributes.take("hidden_activation", str, None) not in (None, *names):
            attributes.require("hidden_activation", names[0], "hidden_act says so")
        return act

    def read_shared(self, attributes: Attributes) -> dict[str, Any]:
        """The fields of `Config` that all Gemma families read in the same way."""
        attributes.require("use_bidirectional_attention", False, "in a decoder no token sees those after it")
        bias = attributes.take("attention_bias", bool, False)
        shared = super().read_shared(attributes)
        return shared | {
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
