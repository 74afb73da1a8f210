"""Where the tokens of one forward pass stand and what each may look at: the same for all layers, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jax_interp.models.cache import Cache
from jax_interp.models.rotary import Rotation


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frame:
    """What `Decoder` hands every block besides the residual stream."""

    rotation: Rotation | None
    mask: Bool[Array, "batch 1 pos key"] | None
    """None: every token sees itself and all before it."""
    start: Int[Array, ""] | None = None
    """The cache slot of the first token, keys then being the cache's slots. None: nothing came before."""


def positions_of(
    tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None, before: Cache | None
) -> Int[Array, "#batch pos"]:
    """A token's position: the number of real tokens before it in its row. Padding before the first stands at 0."""
    if mask is None and before is None:
        return jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    real = jnp.ones_like(tokens) if mask is None else mask.astype(jnp.int32)
    count = jnp.cumsum(real, axis=1)
    if before is not None:
        count = count + jnp.sum(before.valid, axis=1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(count - 1, 0)


def causal(mask: Bool[Array, "batch pos"] | None) -> Bool[Array, "batch 1 pos key"] | None:
    """Each token sees the real ones up to itself; None where all are real, which attention needs no mask for."""
    if mask is None:
        return None
    pos = mask.shape[1]
    return jnp.tril(jnp.ones((pos, pos), bool))[None, None] & mask[:, None, None, :]
