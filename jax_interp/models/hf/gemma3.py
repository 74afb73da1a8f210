"""Gemma 3 (text): five layers of sliding attention to each full one, with a rotation of their own; normed heads."""

from __future__ import annotations

from typing import Any

from jax_interp.core.rotary import Rope
from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family
from jax_interp.models.hf.gemma import read_gemma, write_gemma
from jax_interp.models.hf.gemma2 import read_capped, tensors, write_capped
from jax_interp.models.hf.rope import rope_of, write_rope
from jax_interp.models.hf.sliding import read_layer_types, write_layer_types


def read(attributes: Attributes) -> Config:
    attributes.ignore("cache_implementation")
    take = attributes.take
    local = float(take("rope_local_base_freq", 10_000.0))
    both = take("rope_parameters", {})
    nested = {kind: both[kind] for kind in ("full_attention", "sliding_attention") if kind in both}
    like = read_gemma(attributes.without("rope_parameters") if nested else attributes, base=1e6)
    rope, sliding = like["rope"], Rope(local)
    if nested:
        d_head, n_ctx = like["d_head"], like["n_ctx"]
        rope = rope_of(nested.get("full_attention", {}), d_head, n_ctx, base=1e6)
        sliding = rope_of(nested.get("sliding_attention", {}), d_head, n_ctx, base=local)
    every = take("sliding_window_pattern", 6, also=("_sliding_window_pattern",))
    windows = read_layer_types(attributes, like["n_layers"], lambda i: (i + 1) % every != 0)
    local_rope = {"rope_local": sliding} if windows else {}
    caps = read_capped(attributes, (0.0, 0.0))
    return Config(**(like | {"rope": rope}), **windows, **local_rope, **caps, qk_norm="head")


def write(config: Config) -> dict[str, Any]:
    local = config.rope_local or config.rope
    values = write_gemma(config) | write_capped(config) | write_layer_types(config)
    ropes = {"full_attention": config.rope, "sliding_attention": local}
    return values | {
        "rope_parameters": {kind: write_rope(rope, config.d_head) for kind, rope in ropes.items()},
        "rope_local_base_freq": local.base,
    }


GEMMA3 = Family(
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors,
)
