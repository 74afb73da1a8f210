"""`Family`: the configs and tensor names of one architecture in Hugging Face's layout.

A family is one file of this folder. The file defines a subclass of `Family`, or of a similar family, and registers it:

    @FAMILIES.register
    class Qwen3(Qwen2):
        model_type = "qwen3"
        architecture = "Qwen3ForCausalLM"
        ...

A family in your own file works with `load` and `save` as soon as this file is imported.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.models.config import Config
from jax_interp.models.hf.attributes import Attributes
from jax_interp.models.hf.tensors import TensorSpec


class Family:
    """One family of models: its configs, and the names of its tensors."""

    model_type: ClassVar[str]
    """`model_type` in a `config.json`."""
    architecture: ClassVar[str]
    """The only entry of `architectures` in a `config.json`."""
    prefix: ClassVar[str]
    """The prefix of tensor names. Checkpoints without an unembedding may have no prefix."""
    head: ClassVar[str] = "lm_head"
    """The start of the names of the unembedding's tensors, which have no `prefix`. A tied unembedding may be stored."""
    identifying: ClassVar[tuple[str, ...]] = ()
    """Attributes that identify a `config.json` of this family if it names no architecture."""
    ignored: ClassVar[tuple[str, ...]] = ()
    """Patterns of stored tensors that the model does not need (buffers of old versions), without `prefix`."""

    @abc.abstractmethod
    def read(self, attributes: Attributes) -> Config:
        """The config that a `config.json` describes. Raises `UserError` for a value that is not supported."""
        raise NotImplementedError

    @abc.abstractmethod
    def write(self, config: Config) -> dict[str, Any]:
        """The attributes of a `config.json` for a config.

        It need not check that the family has such a model. `has` checks that `read` returns the same config.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def tensors(self, config: Config) -> Mapping[str, TensorSpec]:
        """The stored tensor of each parameter: {"embed.weight": ..., "blocks.*.attn.q.weight": ...}. No `prefix`."""
        raise NotImplementedError

    def stored_name(self, name: str) -> str:
        """The full name of a stored tensor: with `prefix`, unless it belongs to the unembedding."""
        return name if name.startswith(f"{self.head}.") else self.prefix + name

    def has(self, config: Config) -> bool:
        """Whether this family has a model with this config."""
        try:
            attributes = Attributes(self.write(config), self.model_type)
            same = self.read(attributes) == config
            attributes.close()
        except UserError:
            return False
        return same


FAMILIES: Registry[Family] = Registry("model family", Family)


def families() -> list[Family]:
    """All families. A family comes before the families that derive from it.

    Some models belong to several families: a Mistral without a window is a Llama. Such a model is saved in the most
    general family.
    """
    return [family() for family in sorted(FAMILIES, key=lambda family: (len(family.__mro__), family.model_type))]


def family_of(values: Mapping[str, Any], where: str) -> Family:
    """The family of a `config.json`, by its architecture, or by `model_type` if it names no architecture.

    Args:
      values: the content of the file.
      where: the name of the file, for messages.

    Raises:
      UserError: no family has this architecture. The message lists the supported architectures.
    """
    architectures = values.get("architectures") or [None]
    if not isinstance(architectures, list) or not all(isinstance(name, str | None) for name in architectures):
        raise UserError(f"{where} has architectures={architectures!r:.80}, which needs a list of names")
    unnamed = architectures == [None]
    for family in families():
        identified = bool(family.identifying) and set(family.identifying) <= set(values)
        known = values.get("model_type") == family.model_type or identified
        if architectures == [family.architecture] or (unnamed and known):
            return family
    asked = values.get("model_type") if unnamed else ", ".join(map(str, architectures))
    supported = ", ".join(family.architecture for family in families())
    raise UserError(f"{where} has the architecture {asked!s:.200}; supported are {supported}")


def family_for(config: Config, model_type: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The family for saving a model, and the attributes of its `config.json`.

    Args:
      config: the config of the model.
      model_type: the `model_type` of the family. Default: the most general family that has such a model.

    Raises:
      UserError: the family does not exist, or it has no such model.
    """
    types = [family.model_type for family in families()]
    if model_type is not None and model_type not in types:
        raise UserError(f"family={model_type!r} is not known: choose from {', '.join(types)}")
    for family in families():
        if model_type in (None, family.model_type) and family.has(config):
            return family, family.write(config)
    if model_type is not None:
        raise UserError(f"{model_type} has no model like {config}: it cannot be saved in that layout")
    raise UserError(
        f"none of the families {', '.join(types)} has a model like {config}: it cannot be saved in their layout"
    )
