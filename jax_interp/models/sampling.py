"""How the next token is chosen. A chooser is a callable pytree, `chooser(key, logits) -> tokens`: `Greedy`, `Sample`,
or one's own. Which it is belongs to the structure of a program, its numbers are data: changing them recompiles nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Greedy:
    """The likeliest token; of equally likely ones the lowest id."""

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sample:
    """A draw from `softmax(logits / temperature)`, cut down first to the `top_k` likeliest tokens, then to the fewest
    that hold `top_p` of what is left (Holtzman et al. 2020), renormalised. None: not cut. Temperature 0 is greedy.

    Ties at the edge are kept, all of them. One sort of the vocabulary per token where something is cut.
    """

    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None

    def __call__(self, key: Array, logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        temperature = jnp.asarray(self.temperature, jnp.float32)
        drawn = jax.random.categorical(key, self.cut(logits / jnp.where(temperature > 0, temperature, 1.0)))
        return jnp.where(temperature > 0, drawn.astype(jnp.int32), greedy)

    def cut(self, logits: Float[Array, "batch vocab"]) -> Float[Array, "batch vocab"]:
        """The logits, minus infinity where a token is out."""
        if self.top_k is None and self.top_p is None:
            return logits
        falling = -jnp.sort(-logits, axis=-1)
        if self.top_k is not None:
            k = jnp.clip(jnp.asarray(self.top_k, jnp.int32), 1, logits.shape[-1])
            edge = jax.lax.dynamic_index_in_dim(falling, k - 1, axis=-1, keepdims=True)
            logits, falling = (jnp.where(x >= edge, x, -jnp.inf) for x in (logits, falling))
        if self.top_p is not None:
            p = jax.nn.softmax(falling, axis=-1)
            before = jnp.cumsum(p, axis=-1) - p  # the likeliest token has nothing before it, and always stays
            kept = before < jnp.asarray(self.top_p, p.dtype)
            kept = kept | (jnp.arange(p.shape[-1]) == 0)[None, :]
            edge = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits >= edge, logits, -jnp.inf)
        return logits
