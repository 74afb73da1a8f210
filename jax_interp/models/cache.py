"""The key/value cache of a decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.layer import out_sharding_like
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import iter_segments


@register_dataclass
@dataclass(frozen=True)
class KV:
    """The keys (after rotation) and values of one layer, one slot per token. A `Stack` adds a leading layer axis."""

    k: Float[Array, "batch slot kv_head d_head"]
    v: Float[Array, "batch slot kv_head d_head"]

    def write(self, k: Array, v: Array, first_slot: Int[Array, ""] | None) -> KV:
        """Write `k` and `v` to the slots from `first_slot` on (None: from slot 0).

        If they do not all fit, NaN is written: `dynamic_update_slice` would move them over slots that are in use.
        """
        slot = jnp.int32(0) if first_slot is None else first_slot
        if first_slot is not None:
            fits = first_slot + k.shape[1] <= self.k.shape[1]
            k, v = (jnp.where(fits, x, jnp.asarray(jnp.nan, x.dtype)) for x in (k, v))
        put = jax.lax.dynamic_update_slice_in_dim
        return KV(put(self.k, k, slot, axis=1), put(self.v, v, slot, axis=1))


@register_dataclass
@dataclass(frozen=True)
class Cache:
    """The keys and values of the tokens so far. `logits, cache = model(tokens, cache=cache)` continues the text.

    Slots are filled in order. Padding fills slots too. The cache does not grow: begin it with slots for the whole
    text. More tokens than free slots are an error, or NaN where the number of filled slots is traced.
    """

    layers: list[KV]
    """One entry for each segment of the model's blocks."""
    valid: Bool[Array, "batch slot"]
    """True where a slot holds a real token."""
    length: Int[Array, ""]
    """The number of filled slots."""
    prompt_length: Int[Array, "#batch 1"]
    """The length of the prompt in each row. Negative positions of an edit count from the end of the prompt."""

    @property
    def slots(self) -> int:
        """The number of tokens that the cache can hold."""
        return self.valid.shape[1]

    def extended(self, tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None) -> Cache:
        """The cache with these tokens marked as present. The layers write their keys and values later."""
        real = jnp.ones_like(tokens, dtype=bool) if mask is None else mask
        valid = jax.lax.dynamic_update_slice_in_dim(self.valid, real, self.length, axis=1)
        return dataclasses.replace(self, valid=valid, length=self.length + tokens.shape[1])


def empty_cache(
    blocks: Iterable[Any], tokens: Int[Array, "batch pos"], slots: int, prompt_length: Int[Array, "#batch 1"]
) -> Cache:
    """An empty cache for sequences that start with `tokens` and grow to at most `slots` tokens."""
    layers = [segment.map(lambda block: block.attn.empty_kv(tokens, slots)) for segment in iter_segments(blocks)]
    valid = jnp.zeros((tokens.shape[0], slots), bool, out_sharding=out_sharding_like(tokens))
    return Cache(layers, valid, length=jnp.int32(0), prompt_length=prompt_length)
