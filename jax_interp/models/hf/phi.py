"""Phi 1, 1.5 and 2: parallel blocks of one LayerNorm, part of each head rotated, biases everywhere."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.activations import ACTIVATIONS, name_of
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, Tensor
from jax_interp.models.hf.llama import read_like, tensors_like, write_like

PROJECTIONS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.dense"} | {
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def read(attributes: Attributes) -> Config:
    attributes.require("qk_layernorm", False, "LayerNorm of each head's queries and keys is not built")
    attributes.ignore("embd_pdrop", "resid_pdrop")
    eps = attributes.take("layer_norm_eps", 1e-5)
    act = attributes.choose("hidden_act", ACTIVATIONS, "gelu_new")
    like = read_like(attributes, part=0.5) | {"norm_eps": eps, "act": act, "gated_mlp": False}
    return Config(
        **like,
        norm="layernorm",
        parallel="one norm",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        unembed_bias=not like["tied_embedding"],
    )


def write(config: Config) -> dict[str, Any]:
    values = write_like(config)
    del values["rms_norm_eps"]
    return values | {
        "hidden_act": name_of(config.act, tanh="gelu_new"),
        "layer_norm_eps": config.norm_eps,
        "partial_rotary_factor": (config.rope.dim or config.d_head) / config.d_head,
    }


def tensors(config: Config) -> dict[str, Tensor]:
    found = tensors_like(config, norms={"ln1": "input_layernorm"}, projections=PROJECTIONS)
    return found | {f"ln_final.{kind}": Tensor(f"final_layernorm.{kind}") for kind in ("weight", "bias")}


PHI = Family(
    model_type="phi",
    architecture="PhiForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors,
)
