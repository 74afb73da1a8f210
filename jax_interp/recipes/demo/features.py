"""Which features of the dictionary fire on a token, where else they fire, and what they write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.analysis import W_U
from jax_interp.analysis.norm_at_scale import NormAtScale
from jax_interp.dashboards import features_on_token, logit_effect, top_activations
from jax_interp.dashboards.features import Encoder, LogitEffect
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models.decoder import Decoder
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.dictionary import Inputs


def find(config: DemoConfig, inputs: Inputs, sae: Encoder) -> dict[str, Any]:
    """Find the features that fire on `config.token` more than elsewhere, and what is to know about each.

    Args:
      config: the demo's config: the token, and how much is searched and shown.
      inputs: model, tokenizer and text.
      sae: the trained dictionary.

    Returns:
      Plain values for the report: `token`, its `occurrences` among the `searched` tokens, the `address`, figures of the
      features `found`, and `pages` for the best of them, with contexts and the tokens that they promote and suppress.
    """
    run, tokenizer = config.dictionary, inputs.tokenizer
    batch_at = inputs.text.training_batches(run.batch, run.context, run.dictionary.seed)
    batches = [batch_at(i) for i in range(-(-config.search_sequences // run.batch))]
    where = (inputs.model, run.dictionary.address, sae, batches)
    found = features_on_token(*where, token=tokenizer.id_of(config.token), n=max(8, config.shown_features))
    columns = ("mean_on", "mean_elsewhere", "rate_on", "rate_elsewhere")
    rows = [
        {"feature": int(feature)} | {name: float(getattr(found, name)[i]) for name in columns}
        for i, feature in enumerate(found.features)
    ]
    shown = [int(feature) for feature in found.features[: config.shown_features]]
    windows = top_activations(*where, features=shown, n=config.contexts, before=14, after=5)
    unembed = unembedding(inputs.model)
    pages = []
    for i, feature in enumerate(shown):
        promoted, suppressed = logit_effect(sae, feature, unembed, n=8)
        contexts = [
            _context(windows.tokens[i, j], windows.scores[i, j], windows.before, tokenizer)
            for j in range(config.contexts)
            if windows.peak[i, j] > 0
        ]
        pages.append(
            rows[i]
            | {
                "max": float(windows.peak[i].max()),
                "contexts": contexts,
                "promoted": _tokens_and_effects(promoted, tokenizer),
                "suppressed": _tokens_and_effects(suppressed, tokenizer),
            }
        )
    return {
        "token": config.token,
        "occurrences": found.occurrences,
        "searched": sum(int(np.sum(keep)) for _, keep in batches),
        "address": run.dictionary.address,
        "found": rows,
        "pages": pages,
    }


def unembedding(model: Decoder) -> Callable[[Float[Array, " d"]], Float[Array, " vocab"]]:
    """A direction's effect on the logits, straight through the final norm. It is exact up to the norm's denominator,
    which scales all effects alike."""
    norm, head = NormAtScale.of(model.ln_final, None), W_U(model)
    return lambda direction: norm.linear(direction) @ head


def _context(
    tokens: Int[np.ndarray, " window"], activations: Float[np.ndarray, " window"], before: int, tokenizer: Tokenizer
) -> dict[str, Any]:
    kept = np.flatnonzero(tokens >= 0)
    return {
        "tokens": tokenizer.strings(tokens[kept]),
        "activations": [float(a) for a in activations[kept]],
        "peak": int(np.searchsorted(kept, before)),
    }


def _tokens_and_effects(effect: LogitEffect, tokenizer: Tokenizer) -> list[tuple[str, float]]:
    return [(text, float(e)) for text, e in zip(tokenizer.strings(effect.tokens), effect.effects)]
