"""Gemma 2: norms around attention and MLP, alternating sliding and full attention, softcaps."""

from __future__ import annotations

from typing import Any, ClassVar

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.gemma import Gemma
from jax_interp.models.hf.shared_attributes import read_layer_types, write_layer_types


@FAMILIES.register
class Gemma2(Gemma):
    """Checkpoints whose `model_type` is "gemma2"."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    default_softcaps: ClassVar[tuple[float, float]] = (50.0, 30.0)
    """The softcaps of the attention scores and of the logits."""
    norms: ClassVar = {
        "ln1": "input_layernorm",
        "ln1_post": "post_attention_layernorm",
        "ln2": "pre_feedforward_layernorm",
        "ln2_post": "post_feedforward_layernorm",
    }

    def read_shared(self, attributes: Attributes) -> dict[str, Any]:
        """The fields of `Config` that Gemma 2 and 3 read in the same way."""
        attributes.ignore("cache_implementation")
        scores, logits = self.default_softcaps
        return super().read_shared(attributes) | {
            "norm_places": "around",
            "attn_scale": attributes.take("query_pre_attn_scalar", 256) ** -0.5,
            "attn_softcap": float(attributes.take("attn_logit_softcapping", scores)),
            "logit_softcap": float(attributes.take("final_logit_softcapping", logits)),
        }

    def write_shared(self, config: Config) -> dict[str, Any]:
        scalar = config.attn_scale**-2 if config.attn_scale else config.d_head
        values = super().write_shared(config) | {
            "query_pre_attn_scalar": round(scalar) if round(scalar) ** -0.5 == config.attn_scale else scalar,
            "attn_logit_softcapping": config.attn_softcap or None,
            "final_logit_softcapping": config.logit_softcap or None,
        }
        return values | write_layer_types(config)

    def read(self, attributes: Attributes) -> Config:
        shared = self.read_shared(attributes)
        windows = read_layer_types(attributes, shared["n_layers"], lambda i: i % 2 == 0)
        return Config(**shared, **windows)
