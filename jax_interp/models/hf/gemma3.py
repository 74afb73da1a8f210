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
    default_rope_base = 1e6
    default_softcaps = (0.0, 0.0)

    def read(self, attributes: Attributes) -> Config:
        take = attributes.take
        local_base = float(take("rope_local_base_freq", 10_000.0))
        by_kind = take("rope_parameters", {})
        ropes = {kind: by_kind[kind] for kind in ("full_attention", "sliding_attention") if kind in by_kind}
        shared = self.read_shared(attributes.without("rope_parameters") if ropes else attributes)
        rope, rope_local = shared["rope"], Rope(local_base)
        if ropes:
            d_head, n_ctx = shared["d_head"], shared["n_ctx"]
            rope = rope_of(ropes.get("full_attention", {}), d_head, n_ctx, base=self.default_rope_base)
            rope_local = rope_of(ropes.get("sliding_attention", {}), d_head, n_ctx, base=local_base)
        every = take("sliding_window_pattern", 6, also=("_sliding_window_pattern",))
        windows = read_layer_types(attributes, shared["n_layers"], lambda i: (i + 1) % every != 0)
        local: dict[str, Any] = {"rope_local": rope_local} if windows else {}
        return Config(**(shared | {"rope": rope}), **windows, **local, qk_norm="head")

    def write(self, config: Config) -> dict[str, Any]:
        local = config.rope_local or config.rope
        ropes = {"full_attention": config.rope, "sliding_attention": local}
        return super().write(config) | {
            "rope_parameters": {kind: write_rope(rope, config.d_head) for kind, rope in ropes.items()},
            "rope_local_base_freq": local.base,
        }
