"""Rotary positions: each pair of a head's features is turned by an angle proportional to the position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.models.config import Rope, RopeScaling


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rotation:
    """The cosine and sine of the angle at each position, one for each pair of features, the same for all heads."""

    cos: Float[Array, "#batch pos 1 half"]
    sin: Float[Array, "#batch pos 1 half"]


def frequencies(rope: Rope, d_head: int) -> Float[np.ndarray, "half"]:
    """Radians per position for each pair of features, slowest last. Exact to float64: they are constants of a model."""
    dim = d_head if rope.dim is None else rope.dim
    freq = rope.base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if rope.scaling is None:
        return freq
    return _SCALED[rope.scaling.kind](freq, rope.scaling, rope.base)


def rotation(positions: Int[Array, "#batch pos"], rope: Rope, d_head: int) -> Rotation:
    """The angles' cosines and sines, in float32: at position 10,000 a bfloat16 angle would be off by whole turns."""
    freq = jnp.asarray(frequencies(rope, d_head).reshape(1, 1, 1, -1), jnp.float32)
    angles = positions[..., None, None].astype(jnp.float32) * freq
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.scaling is not None and rope.scaling.kind == "yarn":
        stretch = jnp.asarray(rope.scaling.attention_factor, jnp.float32)
        cos, sin = cos * stretch, sin * stretch
    return Rotation(cos, sin)


def rotate(
    x: Float[Array, "batch pos head d_head"], by: Rotation, adjacent: bool = False
) -> Float[Array, "batch pos head d_head"]:
    """Turn the pairs of the first 2·half features, (i, i + half) or where `adjacent` (2i, 2i + 1); the others stay."""
    cos, sin = by.cos.astype(x.dtype), by.sin.astype(x.dtype)
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if adjacent:
        pairs = turned.reshape(*x.shape[:-1], half, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return jnp.concatenate([turned.reshape(*x.shape[:-1], 2 * half), rest], axis=-1)
    first, second = turned[..., :half], turned[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _linear(freq: np.ndarray, scaling: RopeScaling, base: float) -> np.ndarray:
    return freq / scaling.factor


def _llama3(freq: np.ndarray, scaling: RopeScaling, base: float) -> np.ndarray:
    turns = scaling.original_n_ctx * freq / (2 * math.pi)  # how often a pair turns within the original context
    keep = np.clip((turns - scaling.low_freq) / (scaling.high_freq - scaling.low_freq), 0, 1)
    return freq * (keep + (1 - keep) / scaling.factor)


def _yarn(freq: np.ndarray, scaling: RopeScaling, base: float) -> np.ndarray:
    dim = 2 * len(freq)

    def pair_that_turns(times: float) -> float:
        return dim * math.log(scaling.original_n_ctx / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (np.arange(len(freq)) - low) / (high - low if high != low else 1e-3)
    keep = 1 - np.clip(ramp, 0, 1)
    return freq * (keep + (1 - keep) / scaling.factor)


_SCALED = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
