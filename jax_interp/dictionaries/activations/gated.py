"""Gated: which latents are on and how strongly are decided apart (Rajamanoharan et al. 2024, arXiv:2404.16014).

    π = (x - b_dec) W_enc + b_enc        f = 1[π > 0] · max((x - b_dec) W_enc · exp(r_mag) + b_mag, 0)

`b_enc` is the paper's b_gate. No gradient passes the gate itself: it is trained by the losses on π (losses/gated.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.dictionaries.activations.jumprelu import Jump
from jax_interp.dictionaries.activations.pre import PreCode, dense_pre
from jax_interp.dictionaries.codes import DenseCode


@dataclasses.dataclass(frozen=True)
class Gated:
    """The choice: r_mag and b_mag begin at 0."""

    def init(self, n_features: int, dtype: Any) -> Gate:
        return Gate(jnp.zeros((n_features,), dtype), jnp.zeros((n_features,), dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gate:
    r_mag: Float[Array, " feature"]
    b_mag: Float[Array, " feature"]

    def encode(self, dictionary: Any, x: Float[Array, "row d"]) -> DenseCode:
        return self.decide(dictionary, dense_pre(dictionary, x))

    def decide(self, dictionary: Any, code: PreCode) -> PreCode:
        linear = code.pre - code.of_features(dictionary.b_enc)
        magnitude = jax.nn.relu(linear * code.of_features(jnp.exp(self.r_mag)) + code.of_features(self.b_mag))
        return code.valued(jnp.where(code.pre > 0, magnitude, jnp.zeros_like(magnitude)))

    def takes_part(self, dictionary: Any, pre: Float[Array, "row feature"]) -> Bool[Array, "row feature"]:
        return pre > 0

    def scaled(self, factor: Float[Array, ""]) -> Gate:
        return dataclasses.replace(self, b_mag=self.b_mag * factor)


def as_jumprelu(dictionary: Any) -> Any:
    """The JumpReLU dictionary that is the same function as this gated one (appendix E): W_enc exp(r_mag), b_mag, and
    thresholds b_mag - exp(r_mag) b_gate, at least 0 (they are kept as the least positive number then: exact, since a
    latent of magnitude 0 is off either way)."""
    gate = dictionary.activation
    ratio = jnp.exp(gate.r_mag)
    threshold = jnp.maximum(gate.b_mag - ratio * dictionary.b_enc, jnp.finfo(ratio.dtype).tiny)
    return dataclasses.replace(
        dictionary, W_enc=dictionary.W_enc * ratio[None, :], b_enc=gate.b_mag, activation=Jump(jnp.log(threshold))
    )
