"""StableLM: Llama with LayerNorm, a quarter of each head rotated, and maybe parallel blocks of one norm."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Family, Tensor
from jax_interp.models.hf.llama import BEFORE, read_like, tensors_like, write_like


def read(attributes: Attributes) -> Config:
    attributes.require("qk_layernorm", False, "LayerNorm of each head's queries and keys is not built")
    attributes.ignore("hidden_dropout")
    eps, bias = attributes.take("layer_norm_eps", 1e-5), attributes.take("use_qkv_bias", False)
    parallel = "one norm" if attributes.take("use_parallel_residual", False) else "no"
    like = read_like(attributes, n_ctx=4096, part=0.25) | {"norm_eps": eps}
    return Config(**like, norm="layernorm", parallel=parallel, qkv_bias=bias)


def write(config: Config) -> dict[str, Any]:
    values = write_like(config)
    del values["rms_norm_eps"]
    return values | {
        "layer_norm_eps": config.norm_eps,
        "use_qkv_bias": config.qkv_bias,
        "use_parallel_residual": config.parallel == "one norm",
        "partial_rotary_factor": (config.rope.dim or config.d_head) / config.d_head,
    }


def tensors(config: Config) -> dict[str, Tensor]:
    return tensors_like(config, norms=BEFORE if config.parallel == "no" else {"ln1": BEFORE["ln1"]})


STABLELM = Family(
    model_type="stablelm",
    architecture="StableLmForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors,
)
