"""Losses that keep an adapted model close to the untouched one on benign text."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.objectives import kl_divergence, log_probabilities, masked_mean
from jax_interp.probes.monitors.defences.examples import Texts, wide
from jax_interp.surgery import Model, values_at

Retention = Literal["kl", "hidden"]
HIDDEN = "blocks.*.resid_post"


def norm(x: Float[Array, "... d"]) -> Float[Array, "..."]:
    """The Euclidean norm over the last axis. Its gradient at 0 is 0, not NaN."""
    square = jnp.sum(x * x, axis=-1)
    some = square > 0
    return jnp.where(some, jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)


def hidden_distance(
    new: Float[Array, "layer example pos d"], old: Float[Array, "layer example pos d"], mask: Bool[Array, "example pos"]
) -> Float[Array, ""]:
    """The mean over layers and real tokens of ‖new - old‖₂ (Zou et al. 2024, the retain loss).

    The published code averages over all positions, and padding counts as 0 there. Here padding is left out.

    Args:
      new: values of the adapted model.
      old: the same values of the untouched model.
      mask: True at real tokens.
    """
    distance = norm(wide(new) - wide(old))
    return masked_mean(distance, jnp.broadcast_to(mask[None], distance.shape))


def retention_loss(kind: Retention, adapted: Model, untouched: Model, texts: Texts) -> Float[Array, ""]:
    """How far an adapted model has moved on benign text.

    Args:
      kind: "kl": KL(untouched ‖ adapted) of the next token, in nats, the mean over real tokens. "hidden": the mean norm
        of the difference of the residual streams.
      adapted: the model with adapters.
      untouched: the model without.
      texts: benign text.
    """
    if kind == "hidden":
        new, old = (values_at(m, HIDDEN)(texts.tokens, mask=texts.mask)[HIDDEN] for m in (adapted, untouched))
        return hidden_distance(new, old, texts.mask)
    new, old = (log_probabilities(m(texts.tokens, mask=texts.mask)) for m in (adapted, untouched))
    return masked_mean(kl_divergence(old, new), texts.mask)
