"""A feature ablated, or clamped high, while the model writes.

The dictionary is spliced in with its error term. With the latents unchanged the spliced model is then the model itself,
and every difference is the effect of the feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.data.tokenizer import Tokenizer
from jax_interp.models import generate
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.dictionary import Inputs
from jax_interp.surgery import Clamp, Model, Splice, Tapped, at, edit
from jax_interp.surgery.contract import Dictionary

MAX_TOKENS = 8
"""At most so many tokens have their probabilities compared."""
MIN_PROBABILITY = 0.005
"""A compared token has at least this probability in some variant."""


@jax.jit
def last_log_probabilities(model: Model, tokens: Int[Array, "1 pos"]) -> Float[Array, " vocab"]:
    """The log-probabilities of the token after the prompt."""
    return jax.nn.log_softmax(model(tokens)[0, -1].astype(jnp.float32))


def clamp_feature(
    model: Model,
    address: str,
    sae: Dictionary,
    feature: int | Int[Array, ""],
    value: float | Float[Array, ""],
    pos: slice | None = None,
) -> Tapped:
    """The model with one feature of the dictionary at `address` clamped to `value` at some positions (None: all).

    Feature and value are data: another one compiles nothing.
    """
    spliced = edit(model, at(address, Splice(sae, error=True)))
    value = jnp.asarray(value, jnp.float32)
    return edit(spliced, at(f"{address}.latents", Clamp(value, value), feature=feature, pos=pos))


def intervene(config: DemoConfig, inputs: Inputs, sae: Dictionary, feature: int, largest: float) -> dict[str, Any]:
    """Let the model write with a feature unchanged, ablated, and clamped high.

    Args:
      config: the demo's config: prompt, strength, number of tokens.
      inputs: model and tokenizer.
      sae: the trained dictionary.
      feature: the feature to change.
      largest: its largest activation in the searched text.

    Returns:
      Plain values for the report: the texts, the probabilities of the next token, and KL divergences from the model.
    """
    model, tokenizer, address = inputs.model, inputs.tokenizer, config.dictionary.dictionary.reads[0]
    ids = tokenizer.encode(config.prompt, bos=tokenizer.bos_id is not None)
    tokens = jnp.asarray([ids], jnp.int32)
    value = config.strength * largest
    times = "its largest activation" if config.strength == 1 else f"{config.strength:g} times its largest activation"
    clamped = f"feature {feature} clamped to {value:.3g}, {times}, from the end of the prompt on"
    variants = {
        "clean": (model, "the model unchanged"),
        "ablated": (clamp_feature(model, address, sae, feature, 0.0), f"feature {feature} set to 0"),
        "clamped": (clamp_feature(model, address, sae, feature, value, pos=slice(len(ids) - 1, None)), clamped),
    }
    columns, log_p = [], {}
    for name, (variant, description) in variants.items():
        texts = continuation(variant, tokenizer, ids, config.new_tokens)
        log_p[name] = np.asarray(last_log_probabilities(variant, tokens), np.float64)
        columns.append({"name": name, "description": description, "texts": texts})
    return {
        "feature": feature,
        "address": address,
        "value": value,
        "strength": config.strength,
        "prompt_tokens": len(token_texts(tokenizer, ids)),
        "columns": columns,
        "kl": {name: float(np.sum(np.exp(log_p["clean"]) * (log_p["clean"] - log_p[name]))) for name in log_p},
        "probabilities": _probabilities(log_p, tokenizer),
    }


def continuation(model: Model, tokenizer: Tokenizer, prompt: Sequence[int], new_tokens: int) -> list[str]:
    """The prompt and its likeliest continuation, up to the end of the document, as one string for each token."""
    stop = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    new = np.asarray(generate(model, jnp.asarray([prompt], jnp.int32), new_tokens, stop=stop))[0].tolist()
    new = new[: new.index(stop[0])] if stop and stop[0] in new else new
    return token_texts(tokenizer, [*prompt, *new])


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """One string for each token, special tokens left out. A token that is part of a character shows U+FFFD."""
    return tokenizer.texts(i for i in ids if i not in tokenizer.special_ids)


def _probabilities(log_p: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The tokens that are likeliest in any variant, in descending order of their probability in the clean model."""
    p = {name: np.exp(values) for name, values in log_p.items()}
    highest = np.max(list(p.values()), axis=0)
    best = np.argsort(-highest, kind="stable")[:MAX_TOKENS]
    best = best[(highest[best] >= MIN_PROBABILITY) | (np.arange(len(best)) < 2)]
    best = best[np.argsort(-p["clean"][best], kind="stable")]
    texts = tokenizer.strings(best)
    return [{"token": text} | {name: float(p[name][i]) for name in p} for text, i in zip(texts, best)]
