"""Phi 3: Mistral with fused tensors: one for query, key and value, and one for the two input maps of the MLP."""

from __future__ import annotations

from typing import Any, ClassVar

from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.family import FAMILIES
from jax_interp.models.hf.mistral import Mistral
from jax_interp.models.hf.tensors import Columns, TensorSpec


@FAMILIES.register
class Phi3(Mistral):
    """Checkpoints whose `model_type` is "phi3"."""

    model_type = "phi3"
    architecture = "Phi3ForCausalLM"
    default_n_ctx = 4096
    default_norm_eps = 1e-5
    default_rotated_part = 1.0
    default_kv_heads = None
    default_window = None
    projections: ClassVar = {"o": "self_attn.o_proj", "down": "mlp.down_proj"}

    def read(self, attributes: Attributes) -> Config:
        attributes.ignore(
            "embd_pdrop", "resid_pdrop", "original_max_position_embeddings"
        )  # of a scaling not built here
        return super().read(attributes)

    def write(self, config: Config) -> dict[str, Any]:
        # the default padding token of transformers may be outside a small vocabulary
        return super().write(config) | {"original_max_position_embeddings": config.n_ctx, "pad_token_id": None}

    def tensors(self, config: Config) -> dict[str, TensorSpec]:
        specs = super().tensors(config)
        widths = {"q": config.n_heads, "k": config.n_kv_heads, "v": config.n_kv_heads}
        total, start = (config.n_heads + 2 * config.n_kv_heads) * config.d_head, 0
        for name, heads in widths.items():
            columns = Columns(start, heads * config.d_head, total)
            specs[f"blocks.*.attn.{name}.weight"] = TensorSpec("layers.{}.self_attn.qkv_proj.weight", True, columns)
            start += columns.size
        for i, name in enumerate(("gate", "up")):
            columns = Columns(i * config.d_mlp, config.d_mlp, 2 * config.d_mlp)
            specs[f"blocks.*.mlp.{name}.weight"] = TensorSpec("layers.{}.mlp.gate_up_proj.weight", True, columns)
        return specs
