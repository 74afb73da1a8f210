"""The losses of targeted latent adversarial training (Sheshadri et al. 2024, arXiv:2407.15549).

    attacker    toward · CE(harmful response)  +  away · mean -log(1 - p(refusal))
    model       toward · CE(refusal)  +  away · mean -log(1 - p(harmful response))  +  benign · loss on benign text

Both see the same perturbation of the request.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import cross_entropy, masked_mean
from jax_interp.probes.monitors.defences.examples import Texts
from jax_interp.probes.monitors.defences.latent_attack import Perturbation, edits_of, mean_of_rows
from jax_interp.probes.monitors.defences.retention import retention_loss
from jax_interp.surgery import Model, edit

Benign = Literal["sft", "kl", "hidden"]


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a loss toward one response and away from another."""

    toward: float = 1.0
    away: float = 1.0

    def __post_init__(self) -> None:
        if not (self.toward >= 0 and self.away >= 0 and self.toward + self.away > 0):
            raise UserError(f"the weights are at least 0, and one is above 0: {self}")


BOTH = Weights()
"""Both with the weight 1."""


def unlikelihood(logits: Float[Array, "*rows class"], targets: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """-log(1 - p(target)) in nats, from logits: logsumexp(logits) - logsumexp(logits of the other classes).

    1 - p is never computed, so the loss is finite where p rounds to 1.

    Args:
      logits: logits.
      targets: the class of each row that should not be chosen.
    """
    logits = upcast(logits)
    here = jax.nn.one_hot(targets, logits.shape[-1], dtype=bool)
    return jax.nn.logsumexp(logits, axis=-1) - jax.nn.logsumexp(jnp.where(here, -jnp.inf, logits), axis=-1)


def response_losses(
    weights: Weights, model: Model, toward: Texts, away: Texts, delta: Perturbation
) -> tuple[Float[Array, " example"], Float[Array, " example"]]:
    """(CE of one response, -log(1 - p) of another), each the mean over the tokens of a response, under a perturbation.

    Args:
      weights: a loss of weight 0 is not computed, and is 0.
      model: the model.
      toward: the requests with the response that should be given.
      away: the same requests with the response that should not be given.
      delta: what is added to named values.
    """
    model = edit(model, *edits_of(delta))

    def of(texts: Texts, loss: object) -> Array:
        each = loss(model(texts.tokens, mask=texts.mask)[:, :-1], texts.tokens[:, 1:])  # type: ignore[operator]
        return mean_of_rows(each, texts.predicts())

    none = jnp.zeros(len(toward.tokens), jnp.float32)
    return of(toward, cross_entropy) if weights.toward else none, of(away, unlikelihood) if weights.away else none


def benign_loss(kind: Benign, adapted: Model, untouched: Model, texts: Texts) -> Float[Array, ""]:
    """The loss on benign text.

    Args:
      kind: "sft": the cross-entropy of the responses. "kl" and "hidden": how far the model has moved from the untouched
        one, as in `retention_loss`.
      adapted: the model with adapters.
      untouched: the model without.
      texts: benign requests with responses.
    """
    if kind != "sft":
        return retention_loss(kind, adapted, untouched, texts)
    each = cross_entropy(adapted(texts.tokens, mask=texts.mask)[:, :-1], texts.tokens[:, 1:])
    return masked_mean(each, texts.predicts())
