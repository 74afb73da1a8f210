"""Gemma 1: Llama with embeddings scaled by sqrt(d_model), norm weights stored less one, and a tied unembedding."""

from __future__ import annotations

import math
from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.activations import ACTIVATIONS
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family
from jax_interp.models.hf.llama import read_like, tensors_like, write_like


def read_gemma(attributes: Attributes, **defaults: Any) -> dict[str, Any]:
    """What all Gemmas share."""
    attributes.require("use_bidirectional_attention", False, "a decoder's tokens do not see those after them")
    bias = attributes.take("attention_bias", False)
    # The older attribute says "gelu" in files whose models were run with the approximation that the newer one names.
    act = attributes.choose("hidden_activation", ACTIVATIONS, attributes.take("hidden_act", "gelu_pytorch_tanh"))
    like = read_like(attributes, n_ctx=8192, tied=True, **defaults)
    return like | {
        "act": act,
        "qkv_bias": bias,
        "out_bias": bias,
        "norm_offset": True,
        "embed_scale": math.sqrt(like["d_model"]),
    }


def write_gemma(config: Config) -> dict[str, Any]:
    values = write_like(config)
    return values | {"hidden_activation": values["hidden_act"], "attention_bias": config.qkv_bias}


def read(attributes: Attributes) -> Config:
    return Config(**read_gemma(attributes))


GEMMA = Family(
    model_type="gemma",
    architecture="GemmaForCausalLM",
    base="model.",
    read=read,
    write=write_gemma,
    tensors=tensors_like,
)
