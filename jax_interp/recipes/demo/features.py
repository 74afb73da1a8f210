"""Which features of a dictionary fire on a token, where else they fire, and what they write."""

from __future__ import annotations

from typing import Any

import numpy as np

from jax_interp.analysis import W_U
from jax_interp.analysis.norm_at_scale import NormAtScale
from jax_interp.dashboards.features import features_on_token, logit_effect, top_activations
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.dictionary import Inputs


def find(config: DemoConfig, inputs: Inputs, sae: Any) -> dict[str, Any]:
    """`{"token", "occurrences", "found": [...], "pages": [...]}`, plain values throughout: what the report shows."""
    run, tokenizer = config.dictionary, inputs.tokenizer
    batch_at = inputs.text.training_batches(run.batch, run.context, run.dictionary.seed)
    batches: Any = [batch_at(i) for i in range(-(-config.search_sequences // run.batch))]
    where = (inputs.model, run.dictionary.address, sae, batches)
    found = features_on_token(*where, token=tokenizer.id_of(config.token), n=max(8, config.shown_features))
    rows = [
        {
            "feature": int(feature),
            "mean_on": float(found.mean_on[i]),
            "mean_elsewhere": float(found.mean_elsewhere[i]),
            "rate_on": float(found.rate_on[i]),
            "rate_elsewhere": float(found.rate_elsewhere[i]),
        }
        for i, feature in enumerate(found.features)
    ]
    shown = [row["feature"] for row in rows[: config.shown_features]]
    contexts = top_activations(*where, features=shown, n=config.contexts, before=14, after=5)
    pages = []
    for i, feature in enumerate(shown):
        promoted, suppressed = logit_effect(sae, feature, unembedding(inputs.model), n=8)
        examples = [
            _example(contexts.tokens[i, j], contexts.scores[i, j], contexts.before, tokenizer)
            for j in range(config.contexts)
            if contexts.peak[i, j] > 0
        ]
        pages.append(
            rows[i]
            | {
                "max": float(contexts.peak[i].max()),
                "contexts": examples,
                "promoted": _pairs(promoted, tokenizer),
                "suppressed": _pairs(suppressed, tokenizer),
            }
        )
    searched = sum(int(np.sum(keep)) for _, keep in batches)
    return {
        "token": config.token,
        "occurrences": found.occurrences,
        "searched": searched,
        "address": run.dictionary.address,
        "found": rows,
        "pages": pages,
    }


def unembedding(model: Any) -> Any:
    """A direction's effect on the logits, straight through the final norm: `[d] -> [vocab]`. Exact but for the norm's
    denominator, which scales all of them alike."""
    norm, head = NormAtScale.of(model.ln_final, None), W_U(model)
    return lambda direction: norm.linear(direction) @ head


def _example(tokens: Any, activations: Any, before: int, tokenizer: Any) -> dict[str, Any]:
    real = np.flatnonzero(tokens >= 0)
    return {
        "tokens": tokenizer.strings(tokens[real]),
        "activations": [float(a) for a in activations[real]],
        "peak": int(np.searchsorted(real, before)),
    }


def _pairs(effect: Any, tokenizer: Any) -> list[tuple[str, float]]:
    return [(text, float(e)) for text, e in zip(tokenizer.strings(effect.tokens), effect.effects)]
