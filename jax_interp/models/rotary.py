"""Rotary positions: each pair of a head's features is turned by an angle proportional to the position."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.models.config import Config, RopeScaling

Rotation = tuple[Float[Array, "#batch pos 1 half"], Float[Array, "#batch pos 1 half"]]
"""(cos, sin) of the angle at each position, one for each pair of features, the same for all heads."""


def frequencies(config: Config) -> Float[np.ndarray, "half"]:
    """Radians per position for each pair of features, slowest last. Exact to float64: they are constants of a model."""
    dim = config.rotary_dim
    freq = config.rope.base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return freq if config.rope.scaling is None else _scaled(freq, config.rope.scaling)


def rotation(positions: Int[Array, "#batch pos"], config: Config) -> Rotation:
    """The angles' cosines and sines, in float32: at position 10,000 a bfloat16 angle would be off by whole turns."""
    angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(
        frequencies(config).reshape(1, 1, 1, -1), jnp.float32
    )
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "batch pos head d_head"], by: Rotation) -> Float[Array, "batch pos head d_head"]:
    """Turn the pairs (i, i + half) of the first 2·half features; the others stay."""
    cos, sin = (a.astype(x.dtype) for a in by)
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _scaled(freq: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    if scaling.kind == "linear":
        return freq / scaling.factor
    turns = scaling.original_n_ctx * freq / (2 * math.pi)  # how often a pair turns within the original context
    keep = np.clip((turns - scaling.low_freq) / (scaling.high_freq - scaling.low_freq), 0, 1)
    return freq * (keep + (1 - keep) / scaling.factor)
