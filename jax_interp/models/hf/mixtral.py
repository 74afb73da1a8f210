"""Mixtral: Mistral with a mixture of experts instead of the MLP."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.llama import ATTENTION
from jax_interp.models.hf.mistral import Mistral
from jax_interp.models.hf.tensors import TensorSpec


@FAMILIES.register
class Mixtral(Mistral):
    """Checkpoints whose `model_type` is "mixtral"."""

    model_type = "mixtral"
    architecture = "MixtralForCausalLM"
    default_rope_base = 1e6
    default_norm_eps = 1e-5
    default_window = None
    projections = ATTENTION

    def read(self, attributes: Attributes) -> Config:
        attributes.ignore("router_aux_loss_coef", "router_jitter_noise", "output_router_logits")  # for training
        experts = attributes.size("num_local_experts", 8, also=("num_experts",))
        choices = attributes.size("num_experts_per_tok", 2)
        return Config(**self.read_shared(attributes), n_experts=experts, experts_per_token=choices)

    def write(self, config: Config) -> dict[str, Any]:
        return self.write_shared(config) | {
            "num_local_experts": config.n_experts,
            "num_experts_per_tok": config.experts_per_token,
        }

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = super().tensors(config)
        specs["blocks.*.mlp.router.weight"] = TensorSpec("layers.{}.block_sparse_moe.gate.weight", transposed=True)
        for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            name = f"layers.{{}}.block_sparse_moe.experts.{{}}.{theirs}.weight"
            specs[f"blocks.*.mlp.{ours}.weight"] = TensorSpec(name, transposed=True, experts=True)
        return specs
