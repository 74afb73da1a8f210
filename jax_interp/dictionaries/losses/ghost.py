"""Ghost gradients: dead latents are trained through an exponential instead of their ReLU (Anthropic, January 2024).

    g = exp(pre_dead) W_dec,dead, scaled to half the norm of the residual r = y - ŷ
    ghost = Σ (g - r)² / ‖r‖,  rescaled to the size of the reconstruction term

The residual is of what the dictionary writes; a widely used transcoder code takes that of what it reads.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.dictionaries.losses.forward import Forward, coefficient_only, dense_code
from jax_interp.dictionaries.losses.reconstruction import Kind, of_error


@coefficient_only
@dataclasses.dataclass(frozen=True)
class GhostGradients:
    """Its value equals the reconstruction term's while a latent is dead, 0 otherwise; what matters is its gradient."""

    coefficient: float = 1.0
    kind: Kind = "fvu"

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        fixed = jax.lax.stop_gradient
        pre, residual = dense_code(forward, self).pre, fixed(forward.error)
        through = jnp.where(forward.dead[None, :], jnp.exp(jnp.where(forward.dead[None, :], pre, 0.0)), 0.0)
        ghost = through @ forward.dictionary.W_dec
        norm = lambda a: jnp.sqrt(jnp.sum(a * a, axis=1, keepdims=True))
        ghost = ghost * fixed(norm(residual) / (2 * norm(ghost) + 1e-6))
        off = jnp.sum((ghost - residual) ** 2, axis=1) / (norm(residual)[:, 0] + 1e-6)
        mean_off = jnp.mean(off)
        size = fixed(of_error(forward.error, forward, self.kind) / (mean_off + 1e-6))
        return jnp.where(jnp.any(forward.dead), self.coefficient * size * mean_off, jnp.zeros((), pre.dtype))
