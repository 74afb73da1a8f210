"""The families that can be read and written."""

from __future__ import annotations

from jax_interp.core.errors import UserError
from jax_interp.models.config import Config
from jax_interp.models.hf.family import Family
from jax_interp.models.hf.gemma import GEMMA
from jax_interp.models.hf.gemma2 import GEMMA2
from jax_interp.models.hf.gemma3 import GEMMA3
from jax_interp.models.hf.gpt2 import GPT2
from jax_interp.models.hf.gpt_neo import GPT_NEO
from jax_interp.models.hf.gpt_neox import GPT_NEOX
from jax_interp.models.hf.gptj import GPTJ
from jax_interp.models.hf.hooked_transformer import HOOKED_TRANSFORMER
from jax_interp.models.hf.llama import LLAMA
from jax_interp.models.hf.mistral import MISTRAL
from jax_interp.models.hf.mixtral import MIXTRAL
from jax_interp.models.hf.olmo2 import OLMO2
from jax_interp.models.hf.opt import OPT
from jax_interp.models.hf.phi import PHI
from jax_interp.models.hf.phi3 import PHI3
from jax_interp.models.hf.qwen2 import QWEN2
from jax_interp.models.hf.qwen3 import QWEN3
from jax_interp.models.hf.stablelm import STABLELM

FAMILIES: tuple[Family, ...] = (
    *(GPT2, GPT_NEO, GPTJ, GPT_NEOX, OPT),
    *(LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, PHI, PHI3, GEMMA, GEMMA2, GEMMA3, OLMO2, STABLELM),
    HOOKED_TRANSFORMER,
)
"""A model that several have is written as one of the first."""


def family_of(values: dict, where: str) -> Family:
    """The family of a `config.json`, by its architecture, or by `model_type` where it names none."""
    architectures = values.get("architectures") or [None]
    for family in FAMILIES:
        unnamed = architectures == [None]
        known = values.get("model_type") == family.model_type or (family.marks and set(family.marks) <= set(values))
        if architectures == [family.architecture] or (unnamed and known):
            return family
    asked = ", ".join(map(str, architectures)) if architectures != [None] else values.get("model_type")
    supported = ", ".join(family.architecture for family in FAMILIES)
    raise UserError(f"{where} is of architecture {asked}; supported are {supported}")


def family_for(config: Config, model_type: str | None = None) -> tuple[Family, dict]:
    """The first family that has such a model, or the one asked for, and the attributes that describe it there."""
    types = [family.model_type for family in FAMILIES]
    if model_type is not None and model_type not in types:
        raise UserError(f"family={model_type!r} is not known: choose from {', '.join(types)}")
    for family in FAMILIES:
        if model_type in (None, family.model_type) and family.has(config):
            return family, family.write(config)
    if model_type is not None:
        raise UserError(f"{model_type} has no model like {config}: it cannot be saved in that layout")
    names = ", ".join(types)
    raise UserError(f"none of the families {names} has a model like {config}: it cannot be saved in their layout")
