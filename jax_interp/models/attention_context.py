"""The attention context: the rotation, mask and bias of attention. They are computed once for all layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Float, Int

from jax_interp.core.layer import at_least_float32
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.rotary import Rotation, rotation
from jax_interp.models.cache import Cache
from jax_interp.models.config import Config


@register_dataclass
@dataclass(frozen=True)
class LayerContext:
    """The rotation, mask and bias of one kind of attention, full or sliding."""

    rotation: Rotation | None
    """None if positions are not rotary."""
    mask: Bool[Array, "#batch 1 pos key"] | None
    """True where a token can attend to a key. None: each token attends to itself and all tokens before it."""
    bias: Float[Array, "#batch head pos key"] | None
    """Added to the scores (ALiBi)."""


@register_dataclass
@dataclass(frozen=True)
class AttentionContext:
    """The input of every block besides the residual stream."""

    by_kind: tuple[LayerContext, ...]
    """One for each kind of attention in the model."""
    kind_of_layer: tuple[int, ...] = field(metadata={"static": True})
    """The index into `by_kind` for each layer."""
    first_slot: Int[Array, ""] | None = None
    """The cache slot of the first token. The keys are then the slots of the cache. None: no tokens came before."""

    def at_layer(self, layer: int | Int[Array, ""]) -> LayerContext:
        """The context of one layer. In scanned layers `layer` is traced, and the kind is selected by `jnp.where`."""
        if len(self.by_kind) == 1:
            return self.by_kind[0]
        if isinstance(layer, int):
            return self.by_kind[self.kind_of_layer[layer]]
        is_second = jnp.asarray(np.asarray(self.kind_of_layer) == 1)[layer]
        return jax.tree.map(lambda first, second: jnp.where(is_second, second, first), *self.by_kind)


def attention_context(
    config: Config,
    tokens: Int[Array, "batch pos"],
    positions: Int[Array, "#batch pos"],
    mask: Bool[Array, "batch pos"] | None,
    cache: Cache | None = None,
    dtype: DTypeLike = jnp.float32,
) -> AttentionContext:
    """The attention context of a batch of tokens.

    A token attends to its own slot and earlier slots. The distance to a slot is the number of real tokens in between,
    so padding does not use up a sliding window.

    Args:
      config: the config of the model.
      tokens: `[batch, pos]`. Only the shape is used.
      positions: the absolute position of each token.
      mask: True where a token is real. None: all tokens are real. Not used with `cache`, which contains a mask.
      cache: the cache, which already includes these tokens as its last tokens. Its slots are the keys.
      dtype: the dtype of the residual stream. The rotation and the bias are float32 at least.
    """
    pos = tokens.shape[1]
    real = mask if cache is None else cache.valid
    keys = jnp.arange(pos if cache is None else cache.slots, dtype=jnp.int32)
    first_slot = None if cache is None else cache.length - pos
    of_queries = lambda a: a if first_slot is None else jax.lax.dynamic_slice_in_dim(a, first_slot, pos, axis=-1)
    count = keys[None] if real is None else jnp.cumsum(real, axis=1, dtype=jnp.int32)
    causal = (of_queries(keys)[:, None] >= keys[None, :])[None]
    distance = lambda: of_queries(count)[:, :, None] - count[:, None, :]
    kinds = sorted(set(config.slides))

    def context_of_kind(slides: bool) -> LayerContext:
        rope = config.rope_local or config.rope if slides else config.rope
        # All kinds must have a mask, or none: in scanned layers `jnp.where` selects between the kinds.
        seen = None
        if len(kinds) > 1 or slides or real is not None:
            seen = causal & (distance() < config.window) if slides else causal
            seen = (seen if real is None else seen & real[:, None, :])[:, None]
        return LayerContext(
            rotation(positions, rope, config.d_head, dtype) if config.positions == "rotary" else None,
            seen,
            alibi(config.n_heads, distance(), dtype) if config.positions == "alibi" else None,
        )

    by_kind = tuple(context_of_kind(slides) for slides in kinds)
    return AttentionContext(by_kind, tuple(map(kinds.index, config.slides)), first_slot)


def alibi(
    n_heads: int, distance: Int[Array, "#batch pos key"], dtype: DTypeLike = jnp.float32
) -> Float[Array, "#batch head pos key"]:
    """The ALiBi bias: minus the distance times a slope for each head (Press et al. 2021).

    The slopes fall geometrically from 2^(-8/n). If n is not a power of two, let m be the largest power of two below n.
    The first m slopes are those of m heads. The remaining slopes are every other slope of 2m heads.
    """
    power = 2 ** int(np.log2(n_heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    rest = 2.0 ** (-4 / power * np.arange(1, 2 * (n_heads - power) + 1, 2))
    dtype = at_least_float32(dtype)
    slopes = jnp.asarray(np.concatenate([slopes, rest]).reshape(1, -1, 1, 1), dtype)
    return -slopes * jnp.maximum(distance, 0).astype(dtype)[:, None]


def default_positions(
    tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None, cache: Cache | None
) -> Int[Array, "#batch pos"]:
    """The position of each token: the number of real tokens before it in its row, including tokens in `cache`.

    Padding before the first real token gets position 0.
    """
    if mask is None and cache is None:
        return jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    real = jnp.ones_like(tokens) if mask is None else mask.astype(jnp.int32)
    count = jnp.cumsum(real, axis=1)
    if cache is not None:
        count = count + jnp.sum(cache.valid, axis=1, keepdims=True, dtype=jnp.int32)
    return jnp.maximum(count - 1, 0)
