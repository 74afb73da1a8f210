"""Activations: they decide which latents are on. Each activation has one file. `Activation` is the base class."""

from jax_interp.core.registry import discover
from jax_interp.dictionaries.activations.abs_topk import AbsTopK
from jax_interp.dictionaries.activations.activation import (
    ACTIVATIONS,
    Activation,
    ElementwiseActivation,
    SelectiveActivation,
)
from jax_interp.dictionaries.activations.batch_topk import BatchTopK
from jax_interp.dictionaries.activations.gated import Gate, Gated
from jax_interp.dictionaries.activations.group_max import GroupMax
from jax_interp.dictionaries.activations.jumprelu import Jump, JumpReLU
from jax_interp.dictionaries.activations.matching_pursuit import MatchingPursuit
from jax_interp.dictionaries.activations.relu import ReLU
from jax_interp.dictionaries.activations.topk import TopK

discover(__name__, __path__)

__all__ = [
    "ACTIVATIONS",
    "AbsTopK",
    "Activation",
    "BatchTopK",
    "ElementwiseActivation",
    "Gate",
    "Gated",
    "GroupMax",
    "Jump",
    "JumpReLU",
    "MatchingPursuit",
    "ReLU",
    "SelectiveActivation",
    "TopK",
]
