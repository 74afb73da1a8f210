"""Which features fire on a token, which matter for a prompt, where they fire and what they write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.dashboards import features_on_token, logit_effect, top_activations, unembedding
from jax_interp.dashboards.features import Encoder, LogitEffect
from jax_interp.data.tokenizer import Tokenizer
from jax_interp.dictionaries import Dictionary
from jax_interp.models.generation.generate import generate
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.demo.effects import features_by_effect
from jax_interp.recipes.dictionary import Inputs

Batches = list[tuple[Int[np.ndarray, "seq pos"], Bool[np.ndarray, "seq pos"]]]


def search_batches(config: DemoConfig, inputs: Inputs) -> Batches:
    """The part of the training text in which features are searched."""
    run = config.dictionary
    batch_at = inputs.text.training_batches(run.batch, run.context, run.dictionary.seed)
    return [batch_at(i) for i in range(-(-config.search_sequences // run.batch))]


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
    batches, address = search_batches(config, inputs), config.dictionary.dictionary.reads[0]
    token, most = inputs.tokenizer.id_of(config.token), max(8, config.shown_features)
    found = features_on_token(inputs.model, address, sae, batches, token=token, n=most)
    columns = ("mean_on", "mean_elsewhere", "rate_on", "rate_elsewhere")
    rows = [
        {"feature": int(feature)} | {name: float(getattr(found, name)[i]) for name in columns}
        for i, feature in enumerate(found.features)
    ]
    shown = found.features[: config.shown_features].tolist()
    pages = feature_pages(config, inputs, sae, batches, shown, config.contexts)
    return {
        "token": config.token,
        "occurrences": found.occurrences,
        "searched": sum(int(np.sum(keep)) for _, keep in batches),
        "address": address,
        "found": rows,
        "pages": [row | page for row, page in zip(rows, pages)],
    }


def matter(config: DemoConfig, inputs: Inputs, sae: Dictionary) -> list[dict[str, Any]]:
    """Find the features that matter most for `config.prompt` and the text that the model writes after it.

    Args:
      config: the demo's config: the prompt, and how many features are shown.
      inputs: model, tokenizer and text.
      sae: the trained dictionary.

    Returns:
      The page of each feature, with its `effect` in nats, the largest first.
    """
    tokenizer, address = inputs.tokenizer, config.dictionary.dictionary.reads[0]
    ids = tokenizer.encode(config.prompt, bos=tokenizer.bos_id is not None)
    new = generate(inputs.model, jnp.asarray([ids], jnp.int32), config.new_tokens)
    written = jnp.concatenate([jnp.asarray([ids], jnp.int32), new.astype(jnp.int32)], axis=1)
    effects = features_by_effect(inputs.model, address, sae, written, len(ids) - 1)[: config.searched_features]
    chosen, batches = [feature for feature, _ in effects], search_batches(config, inputs)
    pages = feature_pages(config, inputs, sae, batches, chosen, min(config.contexts, 5))
    return [page | {"effect": effect} for page, (_, effect) in zip(pages, effects)]


def feature_pages(
    config: DemoConfig, inputs: Inputs, sae: Encoder, batches: Batches, features: Sequence[int], contexts: int
) -> list[dict[str, Any]]:
    """What is to know about some features: the strongest contexts, and the promoted and suppressed tokens."""
    address = config.dictionary.dictionary.reads[0]
    windows = top_activations(
        inputs.model, address, sae, batches, features=features, n=contexts, before=14, after=5
    )  # fmt: skip
    unembed, pages = unembedding(inputs.model), []
    for i, feature in enumerate(features):
        promoted, suppressed = logit_effect(sae, feature, unembed, n=8)
        shown = [
            _context(windows.tokens[i, j], windows.scores[i, j], windows.before, inputs.tokenizer)
            for j in range(contexts)
            if windows.peak[i, j] > 0
        ]
        pages.append(
            {
                "feature": feature,
                "max": float(windows.peak[i].max()),
                "contexts": shown,
                "promoted": _tokens_and_effects(promoted, inputs.tokenizer),
                "suppressed": _tokens_and_effects(suppressed, inputs.tokenizer),
            }
        )
    return pages


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
