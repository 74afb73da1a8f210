"""From vectors of the residual stream to the vocabulary, by the model's own final norm and unembedding."""

from __future__ import annotations

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.analysis.parts import expand_to
from jax_interp.analysis.weights import W_U, b_U, decoder
from jax_interp.core.layer import upcast
from jax_interp.surgery import Model, Site


class Decodes(Protocol):
    """A tokenizer: `decode([id])` is a string."""

    def decode(self, ids: list[int], /) -> str:
        """The text of some token ids."""
        ...


def readout(model: Model, resid: Float[Array, "*rows d_model"]) -> Float[Array, "*rows vocab"]:
    """The logits that the model would give if the stream ended with `resid`.

    The final norm (each row with its own scale), the unembedding and its bias, the scale and the softcap of the logits.
    For the last `resid_post` these are the model's own logits.

    Args:
      model: a decoder, also under surgery.
      resid: vectors of the residual stream.

    Returns:
      Logits, in float32 at least.
    """
    config = decoder(model).config
    y = final_norm(model, resid)
    logits = y @ upcast(W_U(model)) + expand_to(upcast(b_U(model)), y.ndim)
    logits = logits * jnp.asarray(config.logit_scale, logits.dtype)
    if config.logit_softcap:
        cap = jnp.asarray(config.logit_softcap, logits.dtype)
        logits = jnp.tanh(logits / cap) * cap
    return logits


def final_norm(model: Model, resid: Float[Array, "*rows d_model"]) -> Float[Array, "*rows d_model"]:
    """`ln_final` of each row by itself, in float32 at least."""
    norm, x = decoder(model).ln_final, upcast(resid)
    if norm is None:
        return x
    return upcast(norm(x.reshape(1, -1, x.shape[-1]), Site.open() / "ln_final")).reshape(x.shape)


def token_ranks(logits: Float[Array, "*rows vocab"], tokens: Int[Array, "*#rows"]) -> Int[Array, "*rows"]:
    """How many tokens have a larger logit than a given token: 0 where it is the prediction.

    Args:
      logits: logits of the vocabulary.
      tokens: a token for all rows, or one for each.
    """
    index = jnp.broadcast_to(expand_to(jnp.asarray(tokens), logits.ndim - 1), logits.shape[:-1])[..., None]
    own = jnp.take_along_axis(logits, index, axis=-1)
    return jnp.sum((logits > own).astype(jnp.int32), axis=-1)


def top_tokens(scores: Float[Array, "*rows vocab"], tokenizer: Decodes | None = None, k: int = 5) -> list[Any]:
    """The tokens of largest score in each row. Not under `jit`.

    Args:
      scores: logits, probabilities or attributions.
      tokenizer: gives the tokens as strings; without it they are ids.
      k: number of tokens for each row.

    Returns:
      `[(token, score), ...]` for one row; lists of these in the shape of the rows otherwise.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim > 1:
        return [top_tokens(row, tokenizer, k) for row in values]
    best = np.argsort(-values, kind="stable")[:k]
    return [(tokenizer.decode([int(i)]) if tokenizer else int(i), float(values[i])) for i in best]
