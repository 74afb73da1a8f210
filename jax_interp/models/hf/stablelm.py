"""StableLM: Llama with LayerNorm and a quarter of each head rotated. Blocks may be parallel, with one norm."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.llama import Llama
from jax_interp.models.hf.tensors import TensorSpec


@FAMILIES.register
class StableLM(Llama):
    """Checkpoints whose `model_type` is "stablelm"."""

    model_type = "stablelm"
    architecture = "StableLmForCausalLM"
    default_n_ctx = 4096
    default_rotated_part = 0.25
    default_norm_eps = 1e-5
    default_kv_heads = 32
    eps_name = "layer_norm_eps"

    def read(self, attributes: Attributes) -> Config:
        attributes.require("qk_layernorm", False, "a LayerNorm of each head's queries and keys is not built")
        attributes.ignore("hidden_dropout")
        bias = attributes.take("use_qkv_bias", bool, False)
        parallel = "one norm" if attributes.take("use_parallel_residual", bool, False) else "no"
        return Config(**self.read_shared(attributes), norm="layernorm", parallel=parallel, qkv_bias=bias)

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config) | {
            "use_qkv_bias": config.qkv_bias,
            "use_parallel_residual": config.parallel == "one norm",
            "partial_rotary_factor": (config.rope.dim or config.d_head) / config.d_head,
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = super().tensors(config)
        unused = ("blocks.*.ln2.weight", "blocks.*.ln2.bias") if config.parallel == "one norm" else ()
        return {name: spec for name, spec in specs.items() if name not in unused}
