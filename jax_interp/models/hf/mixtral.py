"""Mixtral: Mistral with a mixture of experts for an MLP."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, Tensor
from jax_interp.models.hf.llama import PROJECTIONS, tensors_like
from jax_interp.models.hf.mistral import read_windowed, write_windowed


def read(attributes: Attributes) -> Config:
    attributes.ignore("router_aux_loss_coef", "router_jitter_noise", "output_router_logits")  # of training
    experts = attributes.take("num_local_experts", 8, also=("num_experts",))
    choices = attributes.take("num_experts_per_tok", 2)
    like = read_windowed(attributes, n_ctx=4096 * 32, base=1e6, eps=1e-5)
    return Config(**like, n_experts=experts, experts_per_token=choices)


def write(config: Config) -> dict[str, Any]:
    return write_windowed(config) | {
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.experts_per_token,
    }


def tensors(config: Config) -> dict[str, Tensor]:
    attention = {ours: theirs for ours, theirs in PROJECTIONS.items() if ours in "qkvo"}
    found = tensors_like(config, projections=attention)
    found["blocks.*.mlp.router.weight"] = Tensor("layers.{}.block_sparse_moe.gate.weight", transposed=True)
    for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
        name = f"layers.{{}}.block_sparse_moe.experts.{{}}.{theirs}.weight"
        found[f"blocks.*.mlp.{ours}.weight"] = Tensor(name, transposed=True, experts=True)
    return found


MIXTRAL = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors,
)
