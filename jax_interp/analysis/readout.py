"""Map vectors of the residual stream to logits, by the model's final norm and unembedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jax_interp.analysis.norm_at_scale import NormAtScale
from jax_interp.analysis.parts import expand_to
from jax_interp.analysis.weights import W_U, b_U, decoder
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Model, Site


class Decodes(Protocol):
    """A tokenizer: `decode([id])` is a string."""

    def decode(self, ids: list[int], /) -> str:
        """The text of some token ids."""
        ...


def readout(model: Model, resid: Float[Array, "*rows d_model"]) -> Float[Array, "*rows vocab"]:
    """The logits that the model would give if the stream ended with `resid`.

    This applies the final norm (each row has its own scale), the unembedding with its bias, and the scale and softcap
    of the logits. For the last `resid_post` the result is the model's logits.

    Args:
      model: a decoder, with or without surgery.
      resid: vectors of the residual stream.

    Returns:
      Logits, at least in float32.
    """
    config = decoder(model).config
    y = final_norm(model, resid)
    logits = y @ upcast(W_U(model)) + expand_to(upcast(b_U(model)), y.ndim)
    logits = logits * jnp.asarray(config.logit_scale, logits.dtype)
    if config.logit_softcap:
        cap = jnp.asarray(config.logit_softcap, logits.dtype)
        logits = jnp.tanh(logits / cap) * cap
    return logits


def unembedding(model: Model) -> Callable[[Float[Array, "*unit d"]], Float[Array, "*unit vocab"]]:
    """The effect of directions on the logits, straight through the final norm.

    It is exact up to the norm's denominator, which depends on the rest of the residual stream and scales all effects
    alike.

    Args:
      model: a decoder, with or without surgery.

    Returns:
      A callable pytree, directions `[*unit, d_model]` -> effects `[*unit, vocab]`.
    """
    return jax.tree_util.Partial(_straight, NormAtScale.of(decoder(model).ln_final, None), W_U(model))


def _straight(norm: NormAtScale, head: Float[Array, "d vocab"], directions: Float[Array, "*unit d"]) -> Array:
    return norm.linear(directions) @ head


def final_norm(model: Model, resid: Float[Array, "*rows d_model"]) -> Float[Array, "*rows d_model"]:
    """`ln_final` of each row separately, at least in float32."""
    norm, x = decoder(model).ln_final, upcast(resid)
    if norm is None:
        return x
    return upcast(norm(x.reshape(1, -1, x.shape[-1]), Site.open() / "ln_final")).reshape(x.shape)


def token_ranks(logits: Float[Array, "*rows vocab"], tokens: Int[Array, "*#rows"]) -> Int[Array, "*rows"]:
    """The number of tokens with a larger logit than a given token. It is 0 if this token is the prediction.

    Args:
      logits: logits of the vocabulary.
      tokens: one token for all rows, or one for each row.

    Returns:
      Ranks. The rank is -1 for a traced token outside the vocabulary, and where the token's logit is NaN.

    Raises:
      UserError: a token is outside the vocabulary.
    """
    tokens = jnp.asarray(tokens)
    check_token_ids(tokens, logits.shape[-1])
    index = jnp.broadcast_to(expand_to(tokens, logits.ndim - 1), logits.shape[:-1])[..., None]
    own = jnp.take_along_axis(logits, jnp.maximum(index, 0), axis=-1)
    ranks = jnp.sum((logits > own).astype(jnp.int32), axis=-1)
    known = (index[..., 0] >= 0) & (index[..., 0] < logits.shape[-1]) & ~jnp.isnan(own[..., 0])
    return jnp.where(known, ranks, -1)


def check_token_ids(tokens: Int[Array, "..."], vocabulary: int) -> None:
    """Raises UserError if a token id is outside the vocabulary. Traced ids are not checked."""
    if isinstance(tokens, Tracer):
        return
    if outside := [int(i) for i in np.ravel(tokens) if not 0 <= i < vocabulary]:
        raise UserError(f"token {outside[0]} is outside the vocabulary: ids are from 0 to {vocabulary - 1}")


def top_tokens(scores: Float[Array, "*rows vocab"], tokenizer: Decodes | None = None, k: int = 5) -> list[Any]:
    """The tokens with the largest scores in each row. This does not work under `jit`.

    Args:
      scores: logits, probabilities or attributions.
      tokenizer: turns tokens into strings; None: tokens are ids.
      k: number of tokens for each row.

    Returns:
      `[(token, score), ...]` for one row; lists of these in the shape of the rows otherwise.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim > 1:
        return [top_tokens(row, tokenizer, k) for row in values]
    best = np.argsort(-values, kind="stable")[:k]
    return [(_text(tokenizer, int(i)) if tokenizer else int(i), float(values[i])) for i in best]


def _text(tokenizer: Decodes, i: int) -> str:
    """The text of a token inside a text: some decoders remove the space at the start of a text."""
    return tokenizer.decode([i, i])[len(tokenizer.decode([i])) :]
