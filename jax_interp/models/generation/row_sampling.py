"""`SampleRows`: each row of a batch is sampled with its own numbers and its own seed.

The draw of a row depends on its seed and on the number of its new tokens, not on its place in the batch or on the other
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from jax_interp.core.pytrees import register_dataclass


@register_dataclass
@dataclass(frozen=True, eq=False)
class SampleRows:
    """A chooser with a temperature, filters and a seed for each row.

    The order is that of `Sample`: temperature, top-k, top-p. Tokens that tie at the threshold of a filter are all kept.
    No work is done for a setting that no row has: greedy rows draw nothing, and without filters nothing is ranked.

    Example:
        rows = SampleRows(jnp.array([0.0, 0.8]), jnp.array([0, 40]), jnp.array([1.0, 0.9]), jnp.array([0, 7], "uint32"))
        generate(model, tokens, 20, choose=rows, key=jax.random.key(0))
    """

    temperature: Float[Array, "batch"]
    """0: the most likely token."""
    top_k: Int[Array, "batch"]
    """0: all tokens."""
    top_p: Float[Array, "batch"]
    """1: all tokens."""
    seed: UInt32[Array, "batch"]

    def __call__(self, key: Key[Array, ""], logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        return self.chosen(jnp.broadcast_to(key, self.seed.shape), logits)

    def chosen(self, keys: Key[Array, "batch"], logits: Float[Array, "batch vocab"]) -> Int[Array, "batch"]:
        """One token for each row. The seed of the row is folded into its key."""
        greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        draws = self.temperature > 0

        def drawn() -> Array:
            scaled = logits.astype(jnp.float32) / jnp.where(draws, self.temperature, 1.0)[:, None]
            filters = draws & ((self.top_k > 0) | (self.top_p < 1))
            kept = jax.lax.cond(jnp.any(filters), self._filtered, lambda scaled: scaled, scaled)
            return jax.vmap(jax.random.categorical)(jax.vmap(jax.random.fold_in)(keys, self.seed), kept)

        token = jax.lax.cond(jnp.any(draws), lambda: drawn().astype(jnp.int32), lambda: greedy)
        return jnp.where(draws, token, greedy)

    def _filtered(self, logits: Float[Array, "batch vocab"]) -> Float[Array, "batch vocab"]:
        """The logits, with minus infinity at tokens that the filters remove."""
        top_k, top_p = self.top_k[:, None], self.top_p[:, None]
        enough = lambda above: jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32) >= top_k
        logits = jnp.where((top_k == 0) | largest_threshold(logits, enough), logits, -jnp.inf)
        p = jax.nn.softmax(logits, axis=-1)
        likely = lambda above: jnp.sum(jnp.where(above, p, 0.0), axis=-1, keepdims=True) >= top_p
        best = logits == jnp.max(logits, axis=-1, keepdims=True)
        return jnp.where((top_p >= 1) | best | largest_threshold(logits, likely), logits, -jnp.inf)


def largest_threshold(
    x: Float[Array, "batch n"], enough: Callable[[Bool[Array, "batch n"]], Bool[Array, "batch 1"]]
) -> Bool[Array, "batch n"]:
    """Where x is at least t, for the largest t for which `enough(x >= t)`; everywhere if there is no such t.

    It searches t bit by bit, in 32 passes over x. To sort x would take much longer on a CPU.

    Args:
      x: float32 numbers without NaN.
      enough: whether a mask has enough entries. A mask with more entries than a mask that has enough has enough too.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    high = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= high, ~bits, bits | high)  # unsigned integers in the order of the numbers

    def with_bit(i: Array, t: Array) -> Array:
        longer = t | (high >> i.astype(jnp.uint32))
        return jnp.where(enough(ordered >= longer), longer, t)

    return ordered >= jax.lax.fori_loop(0, 32, with_bit, jnp.zeros((x.shape[0], 1), jnp.uint32))
