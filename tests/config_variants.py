"""Variants of a `config.json`: each attribute with another value, null, and absent. For the laws about configs."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULTS = Path(__file__).parent / "models" / "transformers_defaults.json"
"""{case: {"absent": {attribute: what transformers makes of it where it is absent}, "null": the same for null}}. An
attribute that transformers refuses there is left out. tests/parity/test_config_law.py makes and checks the file."""

LINEAR = {"rope_type": "linear", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}  # fmt: skip
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
ROPES = (LINEAR, LLAMA3, YARN, YARN | {"rope_theta": 50.0, "attention_factor": 1.5, "truncate": False},
         YARN | {"beta_fast": None, "mscale": 1.5, "mscale_all_dim": 0.5}, {"rope_theta": 50.0}, {},
         {"rope_theta": 50.0, "partial_rotary_factor": 0.5}, {"rope_type": "dynamic", "factor": 2.0},
         {"full_attention": {"rope_theta": 50.0}, "sliding_attention": LINEAR},
         {"full_attention": None, "sliding_attention": {"rope_theta": 50.0}})  # fmt: skip
ACTS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "quick_gelu")
LAYERS = ("sliding_attention", "full_attention", "sliding_attention", "full_attention")
TYPES = ("global", "local", "local", "global")

OTHERS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("hidden_act", "hidden_activation", "activation_function"), ACTS),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), ROPES),
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq"), (50.0, 10_000)),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), (0.5, 1.0)),
    **dict.fromkeys(("num_key_value_heads",), (1, 2, 6)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (2.0, 0.0, 7)),
    **dict.fromkeys(("sliding_window", "window_size"), (0, 3, 40)),
    "head_dim": (8, 16),
    "layer_types": (LAYERS[:3], LAYERS[1:], ("full_attention",) * 3, LAYERS[:2]),
    "attention_types": ([[["global"], 4]], [[["global", "local"], 2]], [[["local"], 3]]),
    "attention_layers": (TYPES, TYPES[:3]),
    "max_window_layers": (0, 2, 5),
    "query_pre_attn_scalar": (16, 7),
    "sliding_window_pattern": (2, 3),
    "_sliding_window_pattern": (2,),
    "original_max_position_embeddings": (16,),
    "max_position_embeddings": (32, 64),
    "n_positions": (32,),
    "rotary_dim": (6, 12),
    "num_experts": (4, 3),
    "num_local_experts": (3,),
    "num_experts_per_tok": (1, 3),
    "pretraining_tp": (2,),
    "quantization_config": ({"quant_method": "gptq"},),
    "is_encoder_decoder": (True,),
    "pruned_heads": ({"0": [1]},),
    "clip_qkv": (0.5,),
}
"""Other values of attributes for which a drawn number means little, or that files of earlier versions have."""

WITH_ROPE = ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
LEGACY = ("quantization_config", "pruned_heads", "hidden_activation", "head_dim", "num_experts", "attention_bias")
"""Attributes that are not among the defaults of a config of transformers, but that files may have."""


@dataclass(frozen=True)
class Variant:
    """One change of a `config.json`."""

    key: str
    how: str
    """`present`, `null` or `absent`."""
    values: Mapping[str, Any]
    """The changed content of the file."""

    def __str__(self) -> str:
        return f"{self.key}={self.values[self.key]!r}" if self.how == "present" else f"{self.key} {self.how}"


def variants(values: Mapping[str, Any], known: Mapping[str, Any], rng: random.Random) -> Iterator[Variant]:
    """Every attribute of a file, absent, null, and with other values.

    Args:
      values: the content of the file.
      known: all attributes of the architecture, with their values for this file.
      rng: draws the other values.
    """
    rotary = "rope_parameters" in known
    extra = [key for key in (*LEGACY, *(WITH_ROPE if rotary else ())) if key not in known]
    extra += ["rotary_emb_base", "rotary_pct"] if "use_parallel_residual" in known and rotary else []
    for key in [*dict.fromkeys([*known, *values, *extra])]:
        if key in ("model_type", "architectures", "transformers_version", "dtype"):
            continue
        if key in values:
            yield Variant(key, "absent", {k: v for k, v in values.items() if k != key})
        yield Variant(key, "null", {**values, key: None})
        for other in _others(key, known.get(key), rng):
            if key not in values or other != values[key]:
                yield Variant(key, "present", {**values, key: other})


def _others(key: str, value: Any, rng: random.Random) -> list[Any]:
    """Other values of an attribute, of the kind of `value`."""
    if key in OTHERS:
        return [list(other) if isinstance(other, tuple) else other for other in OTHERS[key]]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + rng.choice((1, 2, 4)), 2 * value]
    if isinstance(value, float):
        return [value * rng.uniform(1.5, 9.0) if value else rng.uniform(0.1, 0.9)]
    return [False, 0]
