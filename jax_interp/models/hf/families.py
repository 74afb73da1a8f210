"""The families that can be read and written."""

from __future__ import annotations

from jax_interp.errors import UserError
from jax_interp.models.config import Config
from jax_interp.models.hf.family import Family
from jax_interp.models.hf.gpt2 import GPT2
from jax_interp.models.hf.llama import LLAMA

FAMILIES: tuple[Family, ...] = (GPT2, LLAMA)


def family_of(values: dict, where: str) -> Family:
    """The family of a `config.json`, by its architecture, or by `model_type` where it names none."""
    architectures = values.get("architectures") or [None]
    for family in FAMILIES:
        if architectures == [family.architecture] or (
            architectures == [None] and values.get("model_type") == family.model_type
        ):
            return family
    asked = ", ".join(map(str, architectures)) if architectures != [None] else values.get("model_type")
    supported = ", ".join(family.architecture for family in FAMILIES)
    raise UserError(f"{where} is of architecture {asked}; supported are {supported}")


def family_for(config: Config) -> tuple[Family, dict]:
    """The first family that has such a model, and the attributes that describe it there."""
    for family in FAMILIES:
        if (values := family.write(config)) is not None:
            return family, values
    names = ", ".join(family.model_type for family in FAMILIES)
    raise UserError(f"none of the families {names} has a model like {config}: it cannot be saved in their layout")
