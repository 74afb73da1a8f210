"""Matching pursuit: latents are chosen one after the other. Each step chooses the latent that explains most of the
residual.

    r = x - b_dec;   k times:  j = argmax r·d_i over unused features,  z_j = max(r·d_j, 0),  r = r - z_j d_j

The decoder is also the encoder: `W_enc` and `b_enc` are not used, and decoder rows should have norm 1. The cost is k
products of the size of an encoder's product, one after the other.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.dictionaries.activations.activation import ACTIVATIONS, SelectiveActivation
from jax_interp.dictionaries.codes import RowCode

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MatchingPursuit(SelectiveActivation):
    """Matching pursuit with `k` greedy steps for each row."""

    k: int = dataclasses.field(default=16, metadata={"static": True})
    """Number of steps. A feature is chosen at most once for a row."""

    uses_encoder = False

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> RowCode:
        W = dictionary.W_dec
        fixed = jax.lax.stop_gradient(W).T
        rest = x - dictionary.b_dec[None, :]
        lowest = jnp.asarray(-jnp.inf, rest.dtype)

        def pursue(carry, _):
            rest, taken = carry
            fit = jnp.where(taken, lowest, jax.lax.stop_gradient(rest) @ fixed)
            j = jnp.argmax(fit, axis=1)
            row = W[j]
            value = jax.nn.relu(jnp.sum(rest * row, axis=1))
            taken = taken.at[jnp.arange(len(j)), j].set(True)
            return (rest - value[:, None] * row, taken), (value, j)

        taken = jnp.zeros((x.shape[0], W.shape[0]), bool)
        _, (values, indices) = jax.lax.scan(pursue, (rest, taken), None, length=self.k)
        return RowCode(values.T, indices.T)
