"""What a decoder remembers of the tokens it has seen: their keys and values, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.models.sharding import like
from jax_interp.surgery import Stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KV:
    """One layer's keys (after rotation) and values, a slot for each token; with a leading layer axis in a stack."""

    k: Float[Array, "batch slot kv_head d_head"]
    v: Float[Array, "batch slot kv_head d_head"]

    def write(self, k: Array, v: Array, start: Int[Array, ""] | None) -> KV:
        """The cache with `k` and `v` in the slots from `start` (None: the first) on."""
        slot = jnp.int32(0) if start is None else start
        put = jax.lax.dynamic_update_slice_in_dim
        return KV(put(self.k, k, slot, axis=1), put(self.v, v, slot, axis=1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The state of decoding: `logits, cache = model(tokens, cache=cache)` goes on where `cache` stands.

    Slots are filled in order, padding's too. There is no growing: tokens past the last slot overwrite it, so a cache
    is begun with room for everything that will follow.
    """

    layers: list[Any]
    """One entry for each segment of the model's blocks."""
    valid: Bool[Array, "batch slot"]
    """The slots that hold a real token."""
    length: Int[Array, ""]
    """How many slots are filled."""
    prompt_length: Int[Array, "#batch 1"]
    """Each row's length after the call that began the cache: what negative positions of a region count from."""

    @property
    def slots(self) -> int:
        """How many tokens there is room for."""
        return self.valid.shape[1]

    def extended(self, tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None) -> Cache:
        """The cache that counts these tokens too. Their keys and values are written by the layers."""
        real = jnp.ones_like(tokens, dtype=bool) if mask is None else mask
        valid = jax.lax.dynamic_update_slice_in_dim(self.valid, real, self.length, axis=1)
        return dataclasses.replace(self, valid=valid, length=self.length + tokens.shape[1])


def begin(
    blocks: Iterable[Any], tokens: Int[Array, "batch pos"], slots: int, prompt_length: Int[Array, "#batch 1"]
) -> Cache:
    """An empty cache for sequences that start with `tokens` and grow to at most `slots`."""
    layers = [
        jax.vmap(lambda block: block.attn.room(tokens, slots))(segment.block)
        if isinstance(segment, Stack)
        else segment.attn.room(tokens, slots)
        for segment in blocks
    ]
    if slots < tokens.shape[1]:
        raise UserError(f"a cache of {slots} slots does not hold the {tokens.shape[1]} tokens that begin it")
    valid = jnp.zeros((tokens.shape[0], slots), bool, out_sharding=like(tokens))
    return Cache(layers, valid, length=jnp.int32(0), prompt_length=prompt_length)
