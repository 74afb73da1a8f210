"""Where the tokens of one forward pass stand and what each may look at: the same for all layers, computed once."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.models.cache import Cache
from jax_interp.models.config import Config, Rope
from jax_interp.models.rotary import Rotation, rotation


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class View:
    """What attention of one kind, full or sliding, is told besides queries, keys and values."""

    rotation: Rotation | None
    mask: Bool[Array, "#batch 1 pos key"] | None
    """None: every token sees itself and all before it."""
    bias: Float[Array, "#batch head pos key"] | None
    """Added to the scores."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Frame:
    """What `Decoder` hands every block besides the residual stream."""

    views: tuple[View, ...]
    """One for each kind of attention that the model has."""
    kinds: tuple[int, ...] = field(metadata={"static": True})
    """The kind of each layer's attention."""
    start: Int[Array, ""] | None = None
    """The cache slot of the first token, keys then being the cache's slots. None: nothing came before."""

    def view(self, layer: int | Int[Array, ""]) -> View:
        """What the attention of a layer is told. In a scanned stretch the layer is data, and then so is its kind."""
        if len(self.views) == 1:
            return self.views[0]
        if isinstance(layer, int):
            return self.views[self.kinds[layer]]
        second = jnp.asarray(np.asarray(self.kinds) == 1)[layer]
        return jax.tree.map(lambda one, other: jnp.where(second, other, one), *self.views)


def frame(
    config: Config,
    tokens: Int[Array, "batch pos"],
    positions: Int[Array, "#batch pos"],
    mask: Bool[Array, "batch pos"] | None,
    cache: Cache | None = None,
) -> Frame:
    """The frame of `tokens`. With `cache`, which counts them already, they are its last and keys are its slots.

    What is seen is decided by the order of slots, how far away it is by the real tokens between: padding, wherever it
    stands, takes nothing from a window.
    """
    pos = tokens.shape[1]
    real = mask if cache is None else cache.valid
    keys = jnp.arange(pos if cache is None else cache.slots, dtype=jnp.int32)
    start = None if cache is None else cache.length - pos
    ours = lambda a: a if start is None else jax.lax.dynamic_slice_in_dim(a, start, pos, axis=-1)
    counted = keys[None] if real is None else jnp.cumsum(real, axis=1, dtype=jnp.int32)
    before = (ours(keys)[:, None] >= keys[None, :])[None]  # or the token itself
    distance = lambda: ours(counted)[:, :, None] - counted[:, None, :]
    kinds = sorted(set(config.slides))

    def view(slides: bool) -> View:
        rope: Rope = config.rope_local or config.rope if slides else config.rope
        # All kinds have masks or none has: in a scanned stretch one is picked as data.
        seen = None
        if len(kinds) > 1 or slides or real is not None:
            seen = before & (distance() < config.window) if slides else before
            seen = (seen if real is None else seen & real[:, None, :])[:, None]
        return View(
            rotation(positions, rope, config.d_head) if config.positions == "rotary" else None,
            seen,
            alibi(config.n_heads, distance()) if config.positions == "alibi" else None,
        )

    return Frame(tuple(view(slides) for slides in kinds), tuple(map(kinds.index, config.slides)), start)


def alibi(n_heads: int, distance: Int[Array, "#batch pos key"]) -> Float[Array, "#batch head pos key"]:
    """Each head's slope times minus the distance (Press et al. 2021). Slopes fall geometrically from 2^(-8/n); where n
    is no power of two, the nearest one below gives the first, and every other slope of twice as many the rest."""
    power = 2 ** int(np.log2(n_heads))
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    rest = 2.0 ** (-4 / power * np.arange(1, 2 * (n_heads - power) + 1, 2))
    slopes = jnp.asarray(np.concatenate([slopes, rest]).reshape(1, -1, 1, 1), jnp.float32)
    return -slopes * jnp.maximum(distance, 0).astype(jnp.float32)[:, None]


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
