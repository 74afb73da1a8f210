"""How the next token is chosen. A chooser is a callable pytree, `chooser(key, logits) -> tokens`: `Greedy`, `Sample`,
or one's own. Which it is belongs to the structure of a program, its numbers are data: changing them recompiles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Greedy:
    """The likeliest token; of equally likely ones the lowest id."""

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def log_probs(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The log-probabilities of what it chooses: 0 for one token, minus infinity for the rest."""
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        ids = jnp.expand_dims(jnp.arange(logits.shape[-1]), range(logits.ndim - 1))
        return jnp.where(ids == best, 0.0, -jnp.inf).astype(logits.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sample:
    """A draw from `softmax(logits / temperature)`, cut down first to the `top_k` likeliest tokens, then to the fewest
    that hold `top_p` of what is left (Holtzman et al. 2020), then to those at least `min_p` times as likely as the
    likeliest (Nguyen et al. 2024), renormalised. None: not cut. Temperature 0 is greedy.

    The order is that of transformers. Ties at the edge are kept, all of them. One sort of the vocabulary per token
    where `top_k` or `top_p` cuts.
    """

    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        drawn = jax.random.categorical(key, self._warmed_and_cut(logits))
        return jnp.where(jnp.asarray(self.temperature) > 0, drawn.astype(jnp.int32), greedy)

    def log_probs(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The log-probabilities that it draws by."""
        drawn = jax.nn.log_softmax(self._warmed_and_cut(logits), axis=-1)
        return jnp.where(jnp.asarray(self.temperature) > 0, drawn, Greedy().log_probs(logits))

    def _warmed_and_cut(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        temperature = jnp.asarray(self.temperature, logits.dtype)
        return self.cut(logits / jnp.where(temperature > 0, temperature, jnp.ones_like(temperature)))

    def cut(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
        """The logits, minus infinity where a token is out."""
        if self.top_k is not None or self.top_p is not None:
            logits = self._cut_sorted(logits)
        if self.min_p is not None:  # p >= min_p * p of the likeliest, as logits
            edge = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(jnp.asarray(self.min_p, logits.dtype))
            logits = jnp.where(logits >= edge, logits, -jnp.inf)
        return logits

    def _cut_sorted(self, logits: Float[Array, "... vocab"]) -> Float[Array, "... vocab"]:
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
    """Which ids stand in each row, padding not counted."""
    ids = tokens if mask is None else jnp.where(mask, tokens, vocab)  # outside the table: dropped
    return jax.vmap(lambda row: jnp.zeros(vocab, bool).at[row].set(True, mode="drop"))(ids)


def penalized(
    logits: Float[Array, "batch vocab"], seen: Bool[Array, "batch vocab"], penalty: Float[Array, ""]
) -> Float[Array, "batch vocab"]:
    """The logits of the tokens `seen` made less likely: divided by the penalty where positive, times it where negative
    (Keskar et al. 2019, §4.1, as transformers reads it, where the published formula raises a negative logit)."""
    penalty = jnp.asarray(penalty, logits.dtype)
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)
