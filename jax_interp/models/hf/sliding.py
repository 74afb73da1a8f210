"""Which layers slide, as a `config.json` tells it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes

KINDS = {"sliding_attention": True, "full_attention": False}


def read_layer_types(attributes: Attributes, n_layers: int, default: Callable[[int], bool]) -> dict[str, Any]:
    """`window` and `sliding` by `layer_types`, or where there is none by what the family does by default."""
    window = attributes.take("sliding_window", 0)
    given = attributes.take("layer_types", None)
    sliding = tuple(KINDS[kind] for kind in given) if given and set(given) <= set(KINDS) else None
    if sliding is None:
        if given:
            attributes.require("layer_types", None, "layers attend to all, or to a window (sliding_attention)")
        sliding = tuple(default(i) for i in range(n_layers))
    return {"window": window, "sliding": sliding} if window and any(sliding) else {}


def write_layer_types(config: Config) -> dict[str, Any]:
    names = {slides: name for name, slides in KINDS.items()}
    return {"sliding_window": config.window or None, "layer_types": [names[slides] for slides in config.slides]}
