"""A feature taken out, or held high, while the model writes.

The dictionary is spliced in with its error term, so that with the latent as it is the model is the model, and whatever
changes is the feature's doing.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.objectives import log_probabilities
from jax_interp.models import generate
from jax_interp.surgery import Clamp, Splice, at, edit

SHOWN = 8  # tokens whose probabilities are compared at most,
LEAST = 0.005  # and what each has in some variant at least


@jax.jit
def last_log_probabilities(model: Any, tokens: Int[Array, "1 pos"]) -> Float[Array, " vocab"]:
    """Of the token after the prompt."""
    return log_probabilities(model(tokens)[0, -1])


def held(model: Any, address: str, sae: Any, feature: Any, value: Any) -> Any:
    """The model with one feature of the dictionary at `address` held at `value` at every position. Feature and value
    are data: changing them compiles nothing."""
    spliced = edit(model, at(address, Splice(sae, error=True)))
    value = jnp.asarray(value, jnp.float32)
    return edit(spliced, at(f"{address}.latents", Clamp(value, value), feature=feature))


def most_telling(model: Any, address: str, sae: Any, tokens: Int[Array, "1 pos"], features: list[int]) -> int:
    """Of `features`, the one whose ablation moves the prediction after the prompt most (KL divergence)."""
    clean = last_log_probabilities(model, tokens)

    @jax.jit
    def moved(feature):
        ablated = last_log_probabilities(held(model, address, sae, feature, 0.0), tokens)
        return jnp.sum(jnp.exp(clean) * (clean - ablated))

    return features[int(np.argmax([float(moved(jnp.asarray(feature, jnp.int32))) for feature in features]))]


def intervene(
    model: Any, tokenizer: Any, address: str, sae: Any, prompt: str, features: list[int], maxima: dict[int, float],
    strength: float, new_tokens: int,
) -> dict[str, Any]:  # fmt: skip
    """Continuations and next-token probabilities with a feature as it is, at 0, and at `strength` times its largest
    activation (`maxima`). The feature is the `most_telling` of `features`."""
    ids = tokenizer.encode(prompt, bos=tokenizer.bos_id is not None)
    tokens = jnp.asarray([ids], jnp.int32)
    feature = most_telling(model, address, sae, tokens, features)
    value = strength * maxima[feature]
    variants = {
        "clean": (model, "the model as it is"),
        "ablated": (held(model, address, sae, feature, 0.0), f"feature {feature} set to 0"),
        "clamped": (
            held(model, address, sae, feature, value),
            f"feature {feature} held at {value:.3g}, {strength:g} times its largest activation",
        ),
    }
    stop = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    columns, log_p = [], {}
    for name, (variant, says) in variants.items():
        new = np.asarray(generate(variant, tokens, new_tokens, stop=stop))[0].tolist()
        new = new[: new.index(stop[0])] if stop and stop[0] in new else new
        log_p[name] = np.asarray(last_log_probabilities(variant, tokens), np.float64)
        columns.append({"name": name, "says": says, "texts": pieces(tokenizer, ids, new)})
    return {
        "feature": feature,
        "address": address,
        "value": value,
        "strength": strength,
        "prompt_tokens": len(pieces(tokenizer, ids, [])),
        "columns": columns,
        "kl": {name: float(np.sum(np.exp(log_p["clean"]) * (log_p["clean"] - log_p[name]))) for name in log_p},
        "probabilities": probabilities(log_p, tokenizer),
    }


def pieces(tokenizer: Any, prompt: list[int], new: list[int]) -> list[str]:
    """The text as one string per token, special tokens left out. A token that is part of a character shows U+FFFD."""
    return [tokenizer.decode([i]) for i in [*prompt, *new] if i not in tokenizer.special_ids]


def probabilities(log_p: dict[str, np.ndarray], tokenizer: Any) -> list[dict[str, Any]]:
    """The tokens that are likeliest in any variant, likeliest in the clean model first."""
    p = {name: np.exp(values) for name, values in log_p.items()}
    highest = np.max(list(p.values()), axis=0)
    best = np.argsort(-highest, kind="stable")[:SHOWN]
    best = best[(highest[best] >= LEAST) | (np.arange(len(best)) < 2)]
    best = best[np.argsort(-p["clean"][best], kind="stable")]
    texts = tokenizer.strings(best)
    return [{"token": text} | {n: float(p[n][i]) for n in p} for text, i in zip(texts, best)]
