"""Gemma 3 (text): five layers with sliding attention and their own rotation for each full layer; norms of heads."""

from __future__ import annotations

from typing import Any

from jax_interp.core.rotary import Rope
from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.gemma2 import Gemma2
from jax_interp.models.hf.shared_attributes import read_layer_types, rope_of, write_rope


@FAMILIES.register
class Gemma3(Gemma2):
    """Checkpoints whose `model_type` is "gemma3_text"."""

    model_type = "gemma3_text"
    architecture = "Gemma3ForCausalLM"
    default_n_ctx = 131_072
    default_rope_base = 1e6
    default_softcaps = (None, None)

    def read(self, attributes: Attributes) -> Config:
        shared = self.read_shared(attributes)
        attributes.ignore("_sliding_window_pattern")  # a copy that transformers writes beside layer_types
        every = attributes.size("sliding_window_pattern", 6)
        window = attributes.take("sliding_window", int, 4096, null=None)
        windows = read_layer_types(attributes, shared["n_layers"], window, lambda i: (i + 1) % every != 0)
        base = attributes.take("rope_local_base_freq", float, 10_000.0)
        rope = _rope_parameters(attributes, "sliding_attention")
        local = rope_of(rope, shared["d_head"], shared["n_ctx"], base=base)
        return Config(**shared, **windows, rope_local=local if windows else None, qk_norm="head")

    def read_rope(self, attributes: Attributes, d_head: int, n_ctx: int) -> Rope:
        attributes.require("attn_logit_softcapping", None, "Gemma 3 does not cap attention scores")
        base = attributes.take("rope_theta", float, self.default_rope_base)
        rope, scaling = _rope_parameters(attributes, "full_attention"), attributes.table("rope_scaling")
        if len(rope) and len(scaling):
            attributes.require("rope_scaling", None, "rope_parameters describes the rotation")
        return rope_of(scaling if len(scaling) else rope, d_head, n_ctx, base=base)

    def write(self, config: Config) -> dict[str, Any]:
        local = config.rope_local or config.rope
        ropes = {"full_attention": config.rope, "sliding_attention": local}
        return super().write(config) | {
            "rope_parameters": {kind: write_rope(rope, config.d_head) for kind, rope in ropes.items()},
            "rope_local_base_freq": local.base,
        }


def _rope_parameters(attributes: Attributes, kind: str) -> Attributes:
    """`rope_parameters` for one kind of layer. Parameters for all layers together have no meaning in Gemma 3."""
    kinds = attributes.table("rope_parameters")
    kinds.ignore("full_attention", "sliding_attention")
    kinds.close()
    return kinds.table(kind)
