"""Latents by attribution: which directions, as they are in the texts, made the target likelier there.

    score(i) = - Σ_t  (g_t · d_i) ((a_t - ā) · d_i)        ā = the mean value over the tokens of all requests

The texts are requests of which some may have the trigger: on prompts without it there is nothing to attribute. The
gradient answers "what would make the target likelier", the attribution "what did". (OpenAI's attribution of
completions to latents.)
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.layer import upcast
from jax_interp.steering.backdoors.audit import AuditTexts
from jax_interp.steering.backdoors.method import METHODS, Ranking, Suspect, TriggerMethod, ranked
from jax_interp.steering.backdoors.methods.gradient import check_width, token_gradients
from jax_interp.surgery import Model, values_at
from jax_interp.training.placement import automatic
from jax_interp.training.row_pieces import in_pieces


@METHODS.register
@dataclasses.dataclass(frozen=True)
class AttributionRanking(TriggerMethod):
    """Latents by attribution, averaged over the texts.

    Args:
      batch: the number of texts in one backward pass.
    """

    batch: int = 32

    def rank(self, suspect: Suspect, audit: AuditTexts, key: Key[Array, ""]) -> Ranking:
        directions = suspect.directions()
        rows = (audit.texts.tokens, audit.request)
        totals = in_pieces(functools.partial(_total, suspect.address, suspect.model), rows, self.batch)
        mean = jnp.asarray(totals.sum(axis=0, dtype=np.float64) / audit.request.sum(), jnp.float32)
        check_width(totals, directions, suspect.address)
        program = functools.partial(_attributed, suspect.address, suspect.model, directions, mean)
        scores = in_pieces(program, (audit.texts.tokens, audit.texts.weight, audit.request), self.batch)
        scores = scores.sum(axis=0, dtype=np.float64) / len(audit)
        return ranked(type(self).__name__, "latent", [(i,) for i in range(len(directions))], scores, "nats")


@functools.partial(jax.jit, static_argnums=0)
@automatic
def _total(address: str, model: Model, tokens: Array, request: Array) -> Float[Array, "text d"]:
    x = upcast(values_at(model, address)(tokens)[address])
    return jnp.sum(jnp.where(request[..., None], x, jnp.zeros((), x.dtype)), axis=1)


@functools.partial(jax.jit, static_argnums=0)
@automatic
def _attributed(
    address: str, model: Model, directions: Array, mean: Array, tokens: Array, weight: Array, request: Array
) -> Float[Array, "text feature"]:
    x = upcast(values_at(model, address)(tokens)[address])
    slopes = upcast(token_gradients(address, model, tokens, weight))
    keep = request[..., None]
    slope = jnp.where(keep, slopes, 0.0) @ directions.T.astype(slopes.dtype)
    along = jnp.where(keep, x - mean.astype(x.dtype)[None, None, :], 0.0) @ directions.T.astype(x.dtype)
    return -jnp.sum(slope * along, axis=1)
