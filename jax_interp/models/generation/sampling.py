"""Choosers: how to choose the next token.

A chooser is a callable pytree, `chooser(key, logits) -> tokens`: `Greedy`, `Sample`, or your own class. The class is
part of the compiled program. Its numbers are data, so changing them does not compile again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Number = float | Float[Array, ""]


class Chooser(Protocol):
    """A callable pytree that chooses one token for each row."""

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"], /) -> Int[Array, "batch"]: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Greedy:
    """A chooser that takes the most likely token. Among equally likely tokens it takes the lowest id."""

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def log_probs(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The log-probabilities of the choice: 0 for the chosen token, minus infinity for all others."""
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        ids = jnp.expand_dims(jnp.arange(logits.shape[-1]), range(logits.ndim - 1))
        return jnp.where(ids == best, 0.0, -jnp.inf).astype(logits.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sample:
    """A chooser that samples from the softmax of the logits, after a temperature and three filters.

    The order is that of transformers: temperature, top-k, top-p, min-p. The remaining probabilities are renormalised.
    Tokens that tie at the threshold of a filter are all kept. `top_k` and `top_p` sort the vocabulary for each token.

    Example:
        generate(model, tokens, 20, choose=Sample(temperature=0.8, top_p=0.95), key=jax.random.key(0))
    """

    temperature: Number = 1.0
    """The logits are divided by the temperature. 0: take the most likely token."""
    top_k: int | Int[Array, ""] | None = None
    """Keep the `top_k` most likely tokens. None: all."""
    top_p: Number | None = None
    """Keep the fewest most likely tokens whose total probability is at least `top_p` (Holtzman et al. 2020)."""
    min_p: Number | None = None
    """Keep tokens whose probability is at least `min_p` times the largest probability (Nguyen et al. 2024)."""

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        drawn = jax.random.categorical(key, self._filtered(logits))
        return jnp.where(jnp.asarray(self.temperature) > 0, drawn.astype(jnp.int32), greedy)

    def log_probs(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The log-probabilities of the distribution that is sampled."""
        drawn = jax.nn.log_softmax(self._filtered(logits), axis=-1)
        return jnp.where(jnp.asarray(self.temperature) > 0, drawn, Greedy().log_probs(logits))

    def _filtered(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        temperature = jnp.asarray(self.temperature, logits.dtype)
        return self.filter(logits / jnp.where(temperature > 0, temperature, jnp.ones_like(temperature)))

    def filter(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The logits, with minus infinity at tokens that the filters remove."""
        if self.top_k is not None or self.top_p is not None:
            logits = self._filtered_by_rank(logits)
        if self.min_p is not None:  # p >= min_p * p of the likeliest, as logits
            edge = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(jnp.asarray(self.min_p, logits.dtype))
            logits = jnp.where(logits >= edge, logits, -jnp.inf)
        return logits

    def _filtered_by_rank(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        falling = -jnp.sort(-logits, axis=-1)
        if self.top_k is not None:
            k = jnp.clip(jnp.asarray(self.top_k, jnp.int32), 1, logits.shape[-1])
            edge = jax.lax.dynamic_index_in_dim(falling, k - 1, axis=-1, keepdims=True)
            logits, falling = (jnp.where(x >= edge, x, -jnp.inf) for x in (logits, falling))
        if self.top_p is not None:
            p = jax.nn.softmax(falling, axis=-1)
            before = jnp.cumsum(p, axis=-1) - p  # the likeliest token has nothing before it, and always stays
            first = jnp.expand_dims(jnp.arange(p.shape[-1]) == 0, range(p.ndim - 1))
            kept = (before < jnp.asarray(self.top_p, p.dtype)) | first
            edge = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits >= edge, logits, -jnp.inf)
        return logits


def seen_tokens(
    tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None, vocab: int
) -> Bool[Array, "batch vocab"]:
    """Which token ids occur in each row. Padding is ignored."""
    ids = tokens if mask is None else jnp.where(mask, tokens, vocab)  # outside the table: dropped
    return jax.vmap(lambda row: jnp.zeros(vocab, bool).at[row].set(True, mode="drop"))(ids)


def penalized(
    logits: Float[Array, "batch vocab"], seen: Bool[Array, "batch vocab"], penalty: Float[Array, ""]
) -> Float[Array, "batch vocab"]:
    """Apply the repetition penalty to the tokens in `seen` (Keskar et al. 2019, §4.1).

    Positive logits are divided by the penalty, and negative logits are multiplied by it, as in transformers. The
    published formula always divides, which would raise a negative logit.
    """
    penalty = jnp.asarray(penalty, logits.dtype)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
