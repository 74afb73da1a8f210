"""Ghost gradients: dead latents are trained with an exponential instead of a ReLU (Anthropic, January 2024).

    g = exp(pre_dead) W_dec,dead, scaled to half the norm of the residual r = y - ŷ
    ghost = Σ c (g - r)² / ‖r‖,  c = r² / ((g - r)² / ‖r‖ + 1e-6) at each entry

No gradient flows through the scale of g, through r, or through c. `kind` sets the units, as for the reconstruction
term. The residual r is computed from the value that the dictionary writes. A widely used transcoder code uses the value
that the dictionary reads.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.losses.forward import Forward, dense_code
from jax_interp.dictionaries.losses.reconstruction import Kind, reduce_squares
from jax_interp.dictionaries.losses.term import TERMS, Term, coefficient_only, needs_pre_activations


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class GhostGradients(Term):
    """The ghost term. Only its gradient matters. Its value is about that of the reconstruction term if any latent is
    dead, and 0 otherwise."""

    coefficient: float = 1.0
    kind: Kind = "fvu"

    def check(self, activation: Activation) -> None:
        needs_pre_activations(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        fixed = jax.lax.stop_gradient
        pre, residual = dense_code(forward, self).pre, fixed(forward.error)
        through = jnp.where(forward.dead[None, :], jnp.exp(jnp.where(forward.dead[None, :], pre, 0.0)), 0.0)
        ghost = through @ forward.dictionary.W_dec
        norm = lambda a: jnp.sqrt(jnp.sum(a * a, axis=1, keepdims=True))
        length = norm(residual)
        ghost = ghost * fixed(length / (2 * norm(ghost) + 1e-6))
        off = (ghost - residual) ** 2 / jnp.where(length > 0, length, jnp.ones_like(length))
        size = fixed(residual**2 / (off + 1e-6))
        term = self.coefficient * reduce_squares(size * off, forward, self.kind)
        return jnp.where(jnp.any(forward.dead), term, jnp.zeros((), pre.dtype))
