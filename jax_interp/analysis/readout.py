"""From vectors of the residual stream to the vocabulary, the way the model itself goes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.analysis.parts import over
from jax_interp.analysis.weights import W_U, b_U, decoder
from jax_interp.core.layer import upcast
from jax_interp.surgery import Site


def readout(model: Any, resid: Float[Array, "*rows d_model"]) -> Float[Array, "*rows vocab"]:
    """The logits that the model would give if the stream ended as `resid`: final norm (with each row's own scale),
    unembedding, its bias, scale and softcap. At the last `resid_post` they are the model's own.
    """
    config = decoder(model).config
    y = final_norm(model, resid)
    logits = y @ upcast(W_U(model)) + over(upcast(b_U(model)), y.ndim)
    logits = logits * jnp.asarray(config.logit_scale, logits.dtype)
    if config.logit_softcap:
        cap = jnp.asarray(config.logit_softcap, logits.dtype)
        logits = jnp.tanh(logits / cap) * cap
    return logits


def final_norm(model: Any, resid: Float[Array, "*rows d_model"]) -> Float[Array, "*rows d_model"]:
    """`ln_final` of each row by itself, in float32 at least."""
    norm, x = decoder(model).ln_final, upcast(resid)
    if norm is None:
        return x
    return upcast(norm(x.reshape(1, -1, x.shape[-1]), Site.open() / "ln_final")).reshape(x.shape)


def token_ranks(logits: Float[Array, "*rows vocab"], tokens: Int[Array, "*#rows"]) -> Int[Array, "*rows"]:
    """How many tokens have a larger logit than the given one: 0 where it is the prediction."""
    index = jnp.broadcast_to(over(jnp.asarray(tokens), logits.ndim - 1), logits.shape[:-1])[..., None]
    own = jnp.take_along_axis(logits, index, axis=-1)
    return jnp.sum((logits > own).astype(jnp.int32), axis=-1)


def top_tokens(scores: Float[Array, "*rows vocab"], tokenizer: Any = None, k: int = 5) -> Any:
    """The `k` tokens of largest score in each row with their scores, as nested lists in the shape of the rows.

    Tokens are strings where there is a tokenizer, ids otherwise. Not for use under jit.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim > 1:
        return [top_tokens(row, tokenizer, k) for row in values]
    best = np.argsort(-values, kind="stable")[:k]
    return [(tokenizer.decode([int(i)]) if tokenizer else int(i), float(values[i])) for i in best]
