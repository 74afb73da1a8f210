"""Phi 1, 1.5 and 2: parallel blocks with one LayerNorm, part of each head rotated, biases everywhere."""

from __future__ import annotations

from typing import Any, ClassVar

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.llama import ATTENTION, Llama
from jax_interp.models.hf.shared_attributes import activation_name
from jax_interp.models.hf.tensors import TensorSpec


@FAMILIES.register
class Phi(Llama):
    """Checkpoints whose `model_type` is "phi"."""

    model_type = "phi"
    architecture = "PhiForCausalLM"
    default_rotated_part = 0.5
    default_norm_eps = 1e-5
    default_act = "gelu_new"
    eps_name = "layer_norm_eps"
    norms: ClassVar = {"ln1": "input_layernorm"}
    projections: ClassVar = ATTENTION | {"o": "self_attn.dense", "up": "mlp.fc1", "down": "mlp.fc2"}

    def read(self, attributes: Attributes) -> Config:
        attributes.require("qk_layernorm", False, "a LayerNorm of each head's queries and keys is not built")
        attributes.ignore("embd_pdrop", "resid_pdrop")
        shared = self.read_shared(attributes)
        return Config(
            **shared,
            gated_mlp=False,
            norm="layernorm",
            parallel="one norm",
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            unembed_bias=not shared["tied_embedding"],
        )

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config) | {
            "hidden_act": activation_name(config.act, tanh="gelu_new"),
            "partial_rotary_factor": (config.rope.dim or config.d_head) / config.d_head,
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        final = {f"ln_final.{kind}": TensorSpec(f"final_layernorm.{kind}") for kind in ("weight", "bias")}
        return super().tensors(config) | final
