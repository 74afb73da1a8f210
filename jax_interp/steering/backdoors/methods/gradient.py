"""Latents by the gradient of the loss of the target: one backward pass ranks all of them.

    score(i) = - Σ_t  g_t · d_i        g_t = dL / dx at token t of the request, d_i = the decoder row of latent i

The score is the slope of -L if d_i is added at all tokens of the request. Qin et al. 2025 rank latents in this way, on
prompts without the trigger.
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
from jax_interp.steering.backdoors.audit import AuditTexts
from jax_interp.steering.backdoors.method import METHODS, Ranking, Suspect, TriggerMethod, ranked
from jax_interp.steering.features.target_texts import log_likelihood
from jax_interp.surgery import Model, grad_at
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces


@METHODS.register
@dataclasses.dataclass(frozen=True)
class GradientRanking(TriggerMethod):
    """Latents by the gradient, averaged over the prompts.

    Args:
      batch: the number of texts in one backward pass.
    """

    batch: int = 32

    def rank(self, suspect: Suspect, audit: AuditTexts, key: Key[Array, ""]) -> Ranking:
        directions, slopes = suspect.directions(), request_gradients(suspect, audit, self.batch)
        check_width(slopes, directions, suspect.address)
        scores = -np.mean(slopes, axis=0, dtype=np.float64) @ np.asarray(directions, np.float64).T
        name = type(self).__name__
        return ranked(name, "latent", [(i,) for i in range(len(scores))], scores, "nats per unit of the direction")


def check_width(slopes: np.ndarray, directions: Array, address: str) -> None:
    """Raise UserError if the value does not have the width of the directions."""
    if slopes.shape[-1] != directions.shape[-1]:
        raise UserError(
            f"the value at {address!r} is {slopes.shape[-1]} wide, and the dictionary writes {directions.shape[-1]}"
        )


def request_gradients(suspect: Suspect, audit: AuditTexts, batch: int = 32) -> Float[np.ndarray, "text d"]:
    """The gradient of the loss of each text with respect to the value, summed over the tokens of the request."""
    program = functools.partial(_summed, suspect.address, suspect.model)
    return in_pieces(program, (audit.texts.tokens, audit.texts.weight, audit.request), batch)


@functools.partial(jax.jit, static_argnums=0)
@automatic
def _summed(address: str, model: Model, tokens: Array, weight: Array, request: Array) -> Float[Array, "text d"]:
    slopes = upcast(token_gradients(address, model, tokens, weight))
    return jnp.sum(jnp.where(request[..., None], slopes, jnp.zeros((), slopes.dtype)), axis=1)


def token_gradients(address: str, model: Model, tokens: Array, weight: Array) -> Float[Array, "text pos d"]:
    """The gradient of the loss of each text with respect to the value at each token. A pure function."""
    metric = lambda logits: -jnp.sum(log_likelihood(logits, tokens, weight))
    slopes = grad_at(model, address)(metric)(tokens)[1][address]
    if slopes.ndim != 3:
        raise UserError(f"the value at {address!r} has shape {slopes.shape}: give one with axes (batch, pos, d)")
    return slopes
