"""Latents as detectors of true features: does latent i fire where its feature is on?

feature = max_cosine(sae.W_dec, truth, absolute=True)[1]         the true feature that each latent is judged by
counts = totals.add(counts, hits(sae.encode(x), codes, feature))        batch by batch
detection_of(counts).f1
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Counts = dict[str, Any]


@jax.jit
def hits(z: Float[Array, "row latent"], codes: Float[Array, "row feature"], feature: Int[Array, " latent"]) -> Counts:
    """How often each latent fired with its feature on, without it, and did not fire with it on."""
    fires, on = z != 0, (codes != 0)[:, feature]
    count = lambda where: jnp.sum(where, axis=0, dtype=jnp.int32)
    return {"both": count(fires & on), "latent_only": count(fires & ~on), "feature_only": count(~fires & on)}


@dataclasses.dataclass(frozen=True)
class Detection:
    """Per latent; 0 where undefined (a latent that never fires, a feature that never is on), as in SynthSAEBench, whose
    figures are the plain means over latents."""

    precision: Float[np.ndarray, " latent"]
    recall: Float[np.ndarray, " latent"]
    f1: Float[np.ndarray, " latent"]


def detection_of(counts: Counts) -> Detection:
    def ratio(a, b):
        return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)

    both, false, missed = (counts[name].astype(np.float64) for name in ("both", "latent_only", "feature_only"))
    precision, recall = ratio(both, both + false), ratio(both, both + missed)
    return Detection(precision, recall, ratio(2 * precision * recall, precision + recall))
