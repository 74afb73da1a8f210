"""Which features matter for a text: the effect of ablating each one on the model's predictions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.recipes.demo.intervention import clamp_feature
from jax_interp.surgery import Model, Splice, at, call, edit, read
from jax_interp.surgery.contract import Dictionary

MOST_POSITIONS = 0.25
"""A feature that is active at a larger part of the positions is left out: it says little about single tokens."""


def features_by_effect(
    model: Model, address: str, sae: Dictionary, tokens: Int[Array, "1 pos"], start: int
) -> list[tuple[int, float]]:
    """Sort the features that are active in a text by the effect of their ablation.

    The effect is KL(model || model with the feature set to 0), in nats, summed over the positions from `start` on. The
    dictionary is spliced in with its error term, so the model is otherwise unchanged.

    Args:
      model: the model.
      address: what the dictionary reads.
      sae: the dictionary.
      tokens: one text, BOS first.
      start: the first position whose prediction counts.

    Returns:
      Pairs (feature, effect), the largest effect first.
    """
    latents = f"{address}.latents"
    logits, acts = call(read(edit(model, at(address, Splice(sae, error=True))), latents), tokens)
    active = np.asarray(acts[latents][0, 1:]) > 0
    candidates = np.flatnonzero(active.any(0) & (active.mean(0) <= MOST_POSITIONS))
    if not len(candidates):
        candidates = np.flatnonzero(active.any(0))
    effects = _effects(model, address, sae, tokens, logits, start, jnp.asarray(candidates, jnp.int32))
    order = np.argsort(-np.asarray(effects), kind="stable")
    return [(int(candidates[i]), float(effects[i])) for i in order]


def _effects(
    model: Model,
    address: str,
    sae: Dictionary,
    tokens: Int[Array, "1 pos"],
    logits: Float[Array, "1 pos vocab"],
    start: int,
    features: Int[Array, " feature"],
) -> Float[Array, " feature"]:
    log_p = lambda logits: jax.nn.log_softmax(logits[0, start:-1].astype(jnp.float32))

    @jax.jit
    def run(
        model: Model, sae: Dictionary, tokens: Array, clean: Array, features: Int[Array, " feature"]
    ) -> Float[Array, " feature"]:
        def one(feature: Int[Array, ""]) -> Float[Array, ""]:
            ablated = log_p(clamp_feature(model, address, sae, feature, 0.0)(tokens))
            return jnp.sum(jnp.exp(clean) * (clean - ablated))

        return jax.lax.map(one, features, batch_size=16)

    return run(model, sae, tokens, log_p(logits), features)
