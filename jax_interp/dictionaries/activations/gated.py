"""Gated: a gate decides which latents are on, and a magnitude decides how strongly (Rajamanoharan et al. 2024,
arXiv:2404.16014).

    π = (x - b_dec) W_enc + b_enc        f = 1[π > 0] · max((x - b_dec) W_enc · exp(r_mag) + b_mag, 0)

`b_enc` is called b_gate in the paper. No gradient flows through the gate; losses on π train it (losses/gated.py).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, ElementwiseActivation
from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.activations.pre import PreCode

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@dataclasses.dataclass(frozen=True)
class Gated(ElementwiseActivation):
    """The Gated activation in a config. `init` returns a `Gate` whose `r_mag` and `b_mag` are 0."""

    trains_gate = True

    @classmethod
    def trained_class(cls) -> type[Gate]:
        return Gate

    def init(self, n_features: int, dtype: DTypeLike) -> Gate:
        return Gate(jnp.zeros((n_features,), dtype), jnp.zeros((n_features,), dtype))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Gate(ElementwiseActivation):
    """The activation that a Gated dictionary holds."""

    r_mag: Float[Array, " feature"]
    b_mag: Float[Array, " feature"]

    trains_gate = True
    per_feature = ("r_mag", "b_mag")

    def decide(self, dictionary: Dictionary, code: PreCode) -> PreCode:
        linear = code.pre - code.gather(dictionary.b_enc)
        magnitude = jax.nn.relu(linear * code.gather(jnp.exp(self.r_mag)) + code.gather(self.b_mag))
        return code.with_values(jnp.where(code.pre > 0, magnitude, jnp.zeros_like(magnitude)))

    def scaled(self, factor: Float[Array, "..."]) -> Gate:
        return dataclasses.replace(self, b_mag=self.b_mag * factor)

    def shifted(self, shift: Float[Array, " feature"]) -> Gate:
        return dataclasses.replace(self, b_mag=self.b_mag - shift * jnp.exp(self.r_mag))

    def as_jumprelu(self, dictionary: Dictionary) -> Dictionary:
        """The JumpReLU dictionary that computes the same function (appendix E).

        Its encoder is W_enc exp(r_mag), its bias is b_mag, and its thresholds are b_mag - exp(r_mag) b_gate. A
        threshold below 0 becomes the smallest positive number. This changes nothing, because a latent of magnitude 0 is
        off in both.
        """
        ratio = jnp.exp(self.r_mag)
        jump = Jump.of(self.b_mag - ratio * dictionary.b_enc)
        return dataclasses.replace(
            dictionary, W_enc=dictionary.W_enc * ratio[None, :], b_enc=self.b_mag, activation=jump
        )
