"""Matching pursuit: latents are chosen one after the other. Each step chooses the latent that explains most of the
residual.

    r = x - b_dec;   k times:  j = argmax r·d_i,  v = max(r·d_j, 0),  z_j = z_j + v,  r = r - v d_j

In classical matching pursuit (Mallat & Zhang 1993) a step may take a feature again, and its values add up. SAELens does
this too; it is `retakes=True`. The default deviates from it: a step chooses among the features that the row has not yet
used, so `k` steps give `k` different features. A row can stop before step k by one of SAELens's two rules.

The decoder is also the encoder: `W_enc` and `b_enc` are not used, and decoder rows should have norm 1. The cost is k
products of the size of an encoder's product, one after the other.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.dictionaries.activations.activation import ACTIVATIONS, SelectiveActivation
from jax_interp.dictionaries.codes import DenseCode, RowCode

if TYPE_CHECKING:
    from jax_interp.dictionaries.forms.dictionary import Dictionary


@ACTIVATIONS.register
@reads_older_files(rewritten=lambda fields: {"retakes": False} | fields)
@register_dataclass
@dataclasses.dataclass(frozen=True)
class MatchingPursuit(SelectiveActivation):
    """Matching pursuit with `k` greedy steps for each row."""

    k: int = dataclasses.field(default=16, metadata={"static": True})
    """Number of steps."""
    retakes: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether a step may choose a feature that the row already uses. True: classical matching pursuit."""
    residual_threshold: float = dataclasses.field(default=0.0, metadata={"static": True})
    """A row stops after a step that leaves a residual of a smaller norm. 0: it does not stop."""
    stop_at_retake: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether a row stops after the first step that adds no feature to those that it uses."""

    uses_encoder = False

    def encode(self, dictionary: Dictionary, x: Float[Array, "row d"]) -> RowCode | DenseCode:
        W = dictionary.W_dec
        fixed = jax.lax.stop_gradient(W).T
        rest = x - dictionary.b_dec[None, :]
        stops = self.stop_at_retake or self.residual_threshold > 0
        remembers = self.stop_at_retake or not self.retakes
        lowest, rows = jnp.asarray(-jnp.inf, rest.dtype), jnp.arange(x.shape[0])

        def pursue(carry: Any, _):
            rest, taken, done = carry
            fit = jax.lax.stop_gradient(rest) @ fixed
            j = jnp.argmax(fit if self.retakes else jnp.where(taken, lowest, fit), axis=1)
            row = W[j]
            value = jax.nn.relu(jnp.sum(rest * row, axis=1))
            if stops:
                value = jnp.where(done, jnp.zeros_like(value), value)
            rest = rest - value[:, None] * row
            if self.stop_at_retake:
                done = done | (value == 0) | taken[rows, j]
            if self.residual_threshold > 0:
                square = jnp.sum(rest * rest, axis=1)
                done = done | (square < jnp.asarray(self.residual_threshold**2, square.dtype))
            if remembers:
                taken = taken.at[rows, j].set(True)
            return (rest, taken, done), (value, j)

        taken = jnp.zeros((x.shape[0], W.shape[0]), bool) if remembers else None
        done = jnp.zeros((x.shape[0],), bool) if stops else None
        _, (values, indices) = jax.lax.scan(pursue, (rest, taken, done), None, length=self.k)
        return _added_up(values.T, indices.T, W.shape[0]) if self.retakes else RowCode(values.T, indices.T)

    def scaled(self, factor: Float[Array, "..."]) -> MatchingPursuit:
        if self.residual_threshold == 0:
            return self
        if jnp.ndim(factor) or isinstance(factor, Tracer):
            raise UserError("the residual threshold of matching pursuit can be scaled only by one known number")
        return dataclasses.replace(self, residual_threshold=self.residual_threshold * float(factor))


def _added_up(values: Float[Array, "row k"], indices: Int[Array, "row k"], n_features: int) -> DenseCode:
    """A code in which the values of one feature add up. It is dense, because a `RowCode` has each feature only once."""
    rows = jnp.arange(len(values))[:, None]
    z = jnp.zeros((len(values), n_features), values.dtype).at[rows, indices].add(values)
    return DenseCode(z, z)
