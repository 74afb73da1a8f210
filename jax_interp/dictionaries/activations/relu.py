"""ReLU: every latent with a positive pre-activation is on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, ElementwiseActivation
from jax_interp.dictionaries.activations.pre import PreCode

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@register_dataclass
@dataclasses.dataclass(frozen=True)
class ReLU(ElementwiseActivation):
    """Every positive pre-activation is on: f = max(pre, 0) (Bricken et al. 2023)."""

    cross_layer = True

    def decide(self, dictionary: Dictionary, code: PreCode) -> PreCode:
        return code.with_values(jax.nn.relu(code.pre))
