"""Attributes of a `config.json` that many families share: activations, rotary positions, sliding layers."""

from __future__ import annotations

import math
from collections.abc import Callable
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


def read_rope(
    attributes: Attributes,
    d_head: int,
    n_ctx: int,
    *,
    base: float = 10_000.0,
    part: float | None = None,
    names: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
) -> Rope:
    """The rotation of all layers, from `rope_parameters` or from the older `rope_scaling` and single attributes.

    Args:
      attributes: the attributes of the file.
      d_head: the features of a head.
      n_ctx: the longest sequence.
      base: the base of the frequencies, where the file has none.
      part: the rotated part of a head, where the file has none. None: the family rotates whole heads.
      names: the attributes of the file with `base` and `part`. An entry of `rope_parameters` has priority.
    """
    base = attributes.take(names[0], float, base)
    if part is None:
        attributes.require(names[1], 1.0, "this family rotates whole heads")
    else:
        part = attributes.take(names[1], float, part)
    # Some versions of transformers write the attributes of a family a second time, under the common names.
    for name, own, value in zip(("rope_theta", "partial_rotary_factor"), names, (base, part)):
        if name != own:
            attributes.require(name, value, f"it must be {own}")
    rope = attributes.table("rope_parameters", also=("rope_scaling",))
    return rope_of(rope, d_head, n_ctx, base=base, part=part)


def rope_of(rope: Attributes, d_head: int, n_ctx: int, *, base: float = 10_000.0, part: float | None = None) -> Rope:
    """The rotation that an entry `rope_parameters` describes. The other arguments are as in `read_rope`."""
    base = rope.take("rope_theta", float, base)
    if part is None:
        rope.require("partial_rotary_factor", 1.0, "this family rotates whole heads")
    dim = int(d_head * rope.take("partial_rotary_factor", float, part or 1.0))
    kind = rope.take("rope_type", str, "default", also=("type",))
    scaling = None
    if kind == "linear":
        scaling = RopeScaling("linear", rope.take("factor", float))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            factor=rope.take("factor", float),
            low_freq=rope.take("low_freq_factor", float),
            high_freq=rope.take("high_freq_factor", float),
            original_n_ctx=rope.take("original_max_position_embeddings", int, n_ctx),
        )
    elif kind == "yarn":
        factor = rope.take("factor", float)
        mscales = [rope.take(name, float, 0.0, null=0.0) for name in ("mscale", "mscale_all_dim")]
        stretch = _mscale(factor) if not all(mscales) else _mscale(factor, mscales[0]) / _mscale(factor, mscales[1])
        scaling = RopeScaling(
            "yarn",
            factor=factor,
            original_n_ctx=rope.take("original_max_position_embeddings", int, n_ctx),
            beta_fast=rope.take("beta_fast", float, 32.0, null=32.0) or 32.0,
            beta_slow=rope.take("beta_slow", float, 1.0, null=1.0) or 1.0,
            attention_factor=rope.take("attention_factor", float, stretch, null=stretch),
            truncate=rope.take("truncate", bool, True),
        )
    elif kind != "default":
        raise UserError(
            f"{rope.where} has rope_type={kind!r:.80}; supported are 'default', 'linear', 'llama3' and 'yarn'"
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


def read_layer_types(
    attributes: Attributes, n_layers: int, window: int | None, absent: Callable[[int], bool]
) -> dict[str, Any]:
    """The fields `window` and `sliding` of a `Config`, from `layer_types`.

    Args:
      attributes: the attributes of the file.
      n_layers: the number of layers.
      window: the window of layers with sliding attention. None: there is none.
      absent: if the file has no `layer_types`, `absent(i)` says whether layer i has sliding attention.
    """
    given = attributes.take("layer_types", list, None)
    if given is None:
        return windows_of(window, tuple(absent(i) for i in range(n_layers)))
    if len(given) != n_layers or not all(isinstance(kind, str) and kind in SLIDES_BY_TYPE for kind in given):
        attributes.require("layer_types", None, f"each of {n_layers} layers has full_attention or sliding_attention")
    return windows_of(window, tuple(SLIDES_BY_TYPE[kind] for kind in given))


def windows_of(window: int | None, sliding: tuple[bool, ...]) -> dict[str, Any]:
    """The fields `window` and `sliding` of a `Config`. Raises `UserError` if sliding layers have no window."""
    if not any(sliding):
        return {}
    if window is None or window < 1:
        raise UserError(f"sliding_window={window}, but layers have sliding attention: it must be at least 1")
    return {"window": window, "sliding": sliding}


def write_layer_types(config: Config) -> dict[str, Any]:
    """`sliding_window` and `layer_types` of a config."""
    names = {slides: name for name, slides in SLIDES_BY_TYPE.items()}
    return {"sliding_window": config.window or None, "layer_types": [names[slides] for slides in config.slides]}
