"""Attributes of a `config.json` that many families share: activations, rotary positions, sliding layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.core.rotary import Rope, RopeScaling
from jax_interp.models.config import Activation, Config
from jax_interp.models.hf.attributes import Attributes

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""Activations by their names in a `config.json`."""


def activation_name(act: str, *, tanh: str = "gelu_pytorch_tanh") -> str | None:
    """The name of an activation in a `config.json`; None if it has no name. `tanh` is the name of `gelu_tanh`."""
    return {"silu": "silu", "gelu": "gelu", "gelu_tanh": tanh, "relu": "relu"}.get(act)


def read_rope(attributes: Attributes, d_head: int, n_ctx: int, *, base: float = 10_000.0, part: float = 1.0) -> Rope:
    """The rotation of all layers. `base` and `part` (the rotated part of a head) are the defaults of the family."""
    given = attributes.take("rope_parameters", {}) | attributes.take("rope_scaling", {})
    base = attributes.take("rope_theta", base, also=("rotary_emb_base",))
    part = attributes.take("partial_rotary_factor", part, also=("rotary_pct",))
    original = attributes.take("original_max_position_embeddings", n_ctx)
    return rope_of(given, d_head, original, base=base, part=part)


def rope_of(given: Mapping[str, Any], d_head: int, n_ctx: int, *, base: float = 10_000.0, part: float = 1.0) -> Rope:
    """The rotation that an entry `rope_parameters` describes."""
    rope = Attributes(given, "its rope scaling")
    base = float(rope.take("rope_theta", base))
    dim = int(d_head * float(rope.take("partial_rotary_factor", part)))
    kind = rope.take("rope_type", "default", also=("type",))
    scaling = None
    if kind == "linear":
        scaling = RopeScaling("linear", float(rope.take("factor")))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            factor=float(rope.take("factor")),
            low_freq=float(rope.take("low_freq_factor")),
            high_freq=float(rope.take("high_freq_factor")),
            original_n_ctx=rope.take("original_max_position_embeddings", n_ctx),
        )
    elif kind == "yarn":
        factor, mscales = float(rope.take("factor")), (rope.take("mscale", 0), rope.take("mscale_all_dim", 0))
        stretch = _mscale(factor) if not all(mscales) else _mscale(factor, mscales[0]) / _mscale(factor, mscales[1])
        scaling = RopeScaling(
            "yarn",
            factor=factor,
            original_n_ctx=rope.take("original_max_position_embeddings", n_ctx),
            beta_fast=float(rope.take("beta_fast", 32)),
            beta_slow=float(rope.take("beta_slow", 1)),
            attention_factor=float(rope.take("attention_factor", stretch)),
            truncate=bool(rope.take("truncate", True)),
        )
    elif kind != "default":
        raise UserError(
            f"rope scaling {kind!r} is not supported; supported are 'default', 'linear', 'llama3' and 'yarn'"
        )
    rope.close()
    return Rope(base, dim=None if dim == d_head else dim, scaling=scaling)


def write_rope(rope: Rope, d_head: int) -> dict[str, Any]:
    """The entry `rope_parameters` of a rotation."""
    values: dict[str, Any] = {"rope_theta": rope.base, "rope_type": "default"}
    if rope.dim is not None:
        values["partial_rotary_factor"] = rope.dim / d_head
    if (scaling := rope.scaling) is not None:
        values |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind != "linear":
            values["original_max_position_embeddings"] = scaling.original_n_ctx
        if scaling.kind == "llama3":
            values |= {"low_freq_factor": scaling.low_freq, "high_freq_factor": scaling.high_freq}
        if scaling.kind == "yarn":
            values |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
            values |= {"attention_factor": scaling.attention_factor, "truncate": scaling.truncate}
    return values


def _mscale(factor: float, by: float = 1.0) -> float:
    return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0


SLIDES_BY_TYPE = {"sliding_attention": True, "full_attention": False}


def read_layer_types(attributes: Attributes, n_layers: int, default: Callable[[int], bool]) -> dict[str, Any]:
    """The fields `window` and `sliding` of a `Config`, from `layer_types`.

    If `layer_types` is absent, `default(i)` says whether layer i has sliding attention.
    """
    window = attributes.take("sliding_window", 0)
    given = attributes.take("layer_types", None)
    sliding = tuple(SLIDES_BY_TYPE[kind] for kind in given) if given and set(given) <= set(SLIDES_BY_TYPE) else None
    if sliding is None:
        if given:
            attributes.require("layer_types", None, "a layer has full_attention or sliding_attention")
        sliding = tuple(default(i) for i in range(n_layers))
    return {"window": window, "sliding": sliding} if window and any(sliding) else {}


def write_layer_types(config: Config) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of a config."""
    names = {slides: name for name, slides in SLIDES_BY_TYPE.items()}
    return {"sliding_window": config.window or None, "layer_types": [names[slides] for slides in config.slides]}
