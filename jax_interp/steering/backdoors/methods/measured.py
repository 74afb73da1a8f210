"""Latents by measured steering: how much the loss of the target falls if the direction of a latent is added.

The gradient is the slope at the ordinary prompts, where a trigger may have no slope yet. So the best latents by
gradient are steered with, at some strengths, and the largest fall of the loss counts.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.steering.backdoors.audit import AuditTexts, audit_losses, target_losses
from jax_interp.steering.backdoors.method import METHODS, Ranking, Suspect, TriggerMethod, ranked
from jax_interp.steering.backdoors.methods.gradient import GradientRanking
from jax_interp.steering.steer import Steer
from jax_interp.surgery import Model, at, values_at
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces


@METHODS.register
@dataclasses.dataclass(frozen=True)
class MeasuredRanking(TriggerMethod):
    """The best latents by gradient, by the fall of the loss if their unit direction is added at the request.

    Args:
      candidates: the number of latents that are steered with.
      strengths: the factors of the unit direction, in units of the mean norm of the value.
      at_once: the number of latents in one forward pass.
    """

    candidates: int = 32
    strengths: tuple[float, ...] = (0.5, 1.0, 2.0)
    at_once: int = 16

    def __post_init__(self) -> None:
        if self.candidates < 1 or not self.strengths or min(self.strengths) <= 0:
            raise UserError(f"candidates must be at least 1, and strengths above 0: {self}")

    def rank(self, suspect: Suspect, audit: AuditTexts, key: Key[Array, ""]) -> Ranking:
        best = GradientRanking().rank(suspect, audit, key).top(self.candidates)
        index = np.asarray([i for (i,) in best.ids])
        chosen = np.asarray(suspect.directions())[index]
        lengths = np.maximum(np.linalg.norm(chosen, axis=1, keepdims=True), 1e-30)
        before = float(audit_losses(suspect.model, audit).mean(dtype=np.float64))
        sizes = np.asarray(self.strengths, np.float32) * mean_norm(suspect, audit)
        program = functools.partial(_losses, suspect.address, suspect.model, *_arrays(audit), jnp.asarray(sizes))
        losses = in_pieces(program, ((chosen / lengths).astype(np.float32),), self.at_once)
        return ranked(type(self).__name__, "latent", best.ids, before - losses.min(axis=1), "nats")


def mean_norm(suspect: Suspect, audit: AuditTexts) -> np.float32:
    """The mean norm of the value over the tokens of all requests."""
    norms = np.asarray(_norms(suspect.address, suspect.model, jnp.asarray(audit.texts.tokens)))
    return np.float32(norms[audit.request].mean(dtype=np.float64))


def _arrays(audit: AuditTexts) -> tuple[Array, Array, Array]:
    return jnp.asarray(audit.texts.tokens), jnp.asarray(audit.texts.weight), jnp.asarray(audit.request)


@functools.partial(jax.jit, static_argnums=0)
@automatic
def _norms(address: str, model: Model, tokens: Array) -> Float[Array, "text pos"]:
    return jnp.linalg.norm(upcast(values_at(model, address)(tokens)[address]), axis=-1)


@functools.partial(jax.jit, static_argnums=0)
@automatic
def _losses(
    address: str, model: Model, tokens: Array, weight: Array, request: Array, sizes: Array, directions: Array
) -> Float[Array, "chosen strength"]:
    def of_one(direction: Array) -> Array:
        def of_size(size: Array) -> Array:
            steer = at(address, Steer(direction, size), where=request)
            return jnp.mean(target_losses(model, tokens, weight, steer))

        return jax.lax.map(of_size, sizes)

    return jax.vmap(of_one)(directions)
