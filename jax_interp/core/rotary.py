"""Rotary position embeddings: each pair of features of a head is rotated by an angle proportional to the position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import at_least_float32
from jax_interp.core.pytrees import register_dataclass

RopeKind = Literal["linear", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are scaled for contexts longer than in training.

    `linear` divides every frequency by `factor` (Chen et al. 2023). `llama3` divides a frequency if its wavelength is
    above `original_n_ctx / low_freq` positions, keeps it if its wavelength is below `original_n_ctx / high_freq`, and
    interpolates in between (Llama 3.1, "NTK by parts"). `yarn` (Peng et al. 2023) interpolates linearly in the index of
    the pair, from the pair that turns `beta_fast` times in the original context to the pair that turns `beta_slow`
    times. It also multiplies queries and keys by `attention_factor`.
    """

    kind: RopeKind
    factor: float
    """How many times longer the new context is."""
    low_freq: float = 1.0
    """llama3: pairs that turn fewer times in the original context are divided by `factor`."""
    high_freq: float = 4.0
    """llama3: pairs that turn more times in the original context are kept."""
    original_n_ctx: int = 8192
    """llama3 and yarn: the context that the model was trained on."""
    beta_fast: float = 32.0
    """yarn: pairs that turn more times in the original context are kept."""
    beta_slow: float = 1.0
    """yarn: pairs that turn fewer times in the original context are divided by `factor`."""
    attention_factor: float = 1.0
    """yarn: the factor of queries and keys."""
    truncate: bool = True
    """yarn: whether the interpolation begins and ends at whole pairs."""

    def __post_init__(self):
        if self.kind not in get_args(RopeKind):
            raise UserError(f"rope scaling={self.kind!r} is not known: choose from {', '.join(get_args(RopeKind))}")
        if self.factor <= 0:
            raise UserError(f"rope scaling factor={self.factor} must be positive")
        if self.kind == "llama3" and not 0 < self.low_freq < self.high_freq:
            raise UserError(
                f"llama3 rope scaling needs 0 < low_freq < high_freq, got {self.low_freq}, {self.high_freq}"
            )
        if self.kind == "yarn" and not 0 < self.beta_slow < self.beta_fast:
            raise UserError(f"yarn needs 0 < beta_slow < beta_fast, got {self.beta_slow}, {self.beta_fast}")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding (Su et al. 2021)."""

    base: float = 10_000.0
    """The wavelength of pair i of n is 2π base^(i/n) positions."""
    dim: int | None = None
    """How many features of a head are rotated, counted from the first. None: all."""
    scaling: RopeScaling | None = None
    adjacent: bool = False
    """Whether feature 2i is paired with 2i + 1 (GPT-J), instead of i with i + dim/2 (GPT-NeoX, Llama)."""


@register_dataclass
@dataclass(frozen=True)
class Rotation:
    """The cosine and sine of the angle at each position, for each pair of features. All heads share them."""

    cos: Float[Array, "#batch pos 1 half"]
    sin: Float[Array, "#batch pos 1 half"]


def frequencies(rope: Rope, d_head: int) -> Float[np.ndarray, "half"]:
    """Radians per position for each pair of features, the slowest last. Computed in float64 on the host."""
    dim = d_head if rope.dim is None else rope.dim
    freq = rope.base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if rope.scaling is None:
        return freq
    return _SCALED[rope.scaling.kind](freq, rope.scaling, rope.base)


def rotation(positions: Int[Array, "#batch pos"], rope: Rope, d_head: int, dtype: DTypeLike = jnp.float32) -> Rotation:
    """The rotation at these positions, for values of `dtype`.

    It is float32 at least, because at position 10,000 a bfloat16 angle would be off by whole turns.
    """
    dtype = at_least_float32(dtype)
    freq = jnp.asarray(frequencies(rope, d_head).reshape(1, 1, 1, -1), dtype)
    angles = positions[..., None, None].astype(dtype) * freq
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope.scaling is not None and rope.scaling.kind == "yarn":
        stretch = jnp.asarray(rope.scaling.attention_factor, dtype)
        cos, sin = cos * stretch, sin * stretch
    return Rotation(cos, sin)


def rotate(
    x: Float[Array, "batch pos head d_head"], by: Rotation, adjacent: bool = False
) -> Float[Array, "batch pos head d_head"]:
    """Rotate the pairs (i, i + half), or (2i, 2i + 1) if `adjacent`, of the first 2·half features. Other features stay
    the same."""
    cos, sin = by.cos.astype(x.dtype), by.sin.astype(x.dtype)
    half = cos.shape[-1]
    rotated, rest = x[..., : 2 * half], x[..., 2 * half :]
    if adjacent:
        pairs = rotated.reshape(*x.shape[:-1], half, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return jnp.concatenate([rotated.reshape(*x.shape[:-1], 2 * half), rest], axis=-1)
    first, second = rotated[..., :half], rotated[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _linear(freq: np.ndarray, scaling: RopeScaling, base: float) -> np.ndarray:
    return freq / scaling.factor


def _llama3(freq: np.ndarray, scaling: RopeScaling, base: float) -> np.ndarray:
    turns = scaling.original_n_ctx * freq / (2 * math.pi)  # how many times a pair turns within the original context
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
