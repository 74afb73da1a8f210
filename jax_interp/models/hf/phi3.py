"""Phi 3: Mistral with query, key, value in one tensor, and the MLP's two inputs in another."""

from __future__ import annotations

from typing import Any

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import Columns, Family, Tensor
from jax_interp.models.hf.llama import PROJECTIONS, tensors_like
from jax_interp.models.hf.mistral import read_windowed, write_windowed


def read(attributes: Attributes) -> Config:
    attributes.ignore("embd_pdrop", "resid_pdrop")
    return Config(**read_windowed(attributes, n_ctx=4096, eps=1e-5))


def write(config: Config) -> dict[str, Any]:
    # transformers has a padding token by default, which a small vocabulary may lack
    return write_windowed(config) | {"original_max_position_embeddings": config.n_ctx, "pad_token_id": None}


def tensors(config: Config) -> dict[str, Tensor]:
    found = tensors_like(config, projections={name: PROJECTIONS[name] for name in ("o", "down")})
    widths = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
    total, start = (config.n_heads + 2 * config.n_kv_heads) * config.d_head, 0
    for name, heads in widths.items():
        columns = Columns(start, heads * config.d_head, total)
        found[f"blocks.*.attn.{name}.weight"] = Tensor("layers.{}.self_attn.qkv_proj.weight", True, columns)
        start += columns.size
    for i, name in enumerate(("gate", "up")):
        columns = Columns(i * config.d_mlp, config.d_mlp, 2 * config.d_mlp)
        found[f"blocks.*.mlp.{name}.weight"] = Tensor("layers.{}.mlp.gate_up_proj.weight", True, columns)
    return found


PHI3 = Family(
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    base="model.",
    read=read,
    write=write,
    tensors=tensors,
)
