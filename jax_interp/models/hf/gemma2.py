"""Gemma 2: norms around attention and MLP, alternating sliding and full attention, softcaps."""

from __future__ import annotations

from typing import Any, ClassVar

from jax_interp.models.config import Activation, Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.gemma import Gemma
from jax_interp.models.hf.shared_attributes import ACTIVATIONS, read_layer_types, write_layer_types


@FAMILIES.register
class Gemma2(Gemma):
    """Checkpoints whose `model_type` is "gemma2"."""

    model_type = "gemma2"
    architecture = "Gemma2ForCausalLM"
    default_kv_heads = 4
    default_softcaps: ClassVar[tuple[float | None, float | None]] = (50.0, 30.0)
    """The softcaps of the attention scores and of the logits. None: no cap."""
    norms: ClassVar = {
        "ln1": "input_layernorm",
        "ln1_post": "post_attention_layernorm",
        "ln2": "pre_feedforward_layernorm",
        "ln2_post": "post_feedforward_layernorm",
    }

    def read_act(self, attributes: Attributes) -> Activation:
        attributes.ignore("hidden_act")  # files may have it, but Gemma 2 and 3 compute what hidden_activation names
        return attributes.choose("hidden_activation", ACTIVATIONS, self.default_act)

    def read_shared(self, attributes: Attributes) -> dict[str, Any]:
        """The fields of `Config` that Gemma 2 and 3 read in the same way."""
        scores, logits = self.default_softcaps
        return super().read_shared(attributes) | {
            "norm_places": "around",
            "attn_scale": attributes.take("query_pre_attn_scalar", float, 256.0) ** -0.5,
            "attn_softcap": _softcap(attributes, "attn_logit_softcapping", scores),
            "logit_softcap": _softcap(attributes, "final_logit_softcapping", logits),
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
        window = attributes.take("sliding_window", int, 4096, null=None)
        windows = read_layer_types(attributes, shared["n_layers"], window, lambda i: i % 2 == 0)
        return Config(**shared, **windows)


def _softcap(attributes: Attributes, name: str, absent: float | None) -> float:
    """A softcap; 0 if there is none."""
    cap = attributes.take(name, float, absent, null=None)
    if cap is not None and cap <= 0:
        attributes.require(name, None, "a cap is positive, or null for no cap")
    return cap or 0.0
