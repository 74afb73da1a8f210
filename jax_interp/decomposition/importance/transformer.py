"""A transformer that reads the inputs of all matrices and returns the importances of all components (VPD 2026)."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.base import (
    IMPORTANCE_FUNCTIONS,
    ImportanceConfig,
    PerMatrix,
    concatenate_matrices,
    gelu,
    normal_init,
    require_vectors,
    split_components,
    total_widths,
)
from jax_interp.decomposition.importance.shared_mlp import Dense
from jax_interp.surgery.taps import static


@IMPORTANCE_FUNCTIONS.register
@reads_older_files(called=("TransformerGates",))
@dataclasses.dataclass(frozen=True)
class GlobalTransformer(ImportanceConfig):
    """A bidirectional transformer that reads the inputs of all matrices at all positions.

    The inputs are RMS-normed, concatenated and projected to `d_model`. Then follow `blocks` pre-norm blocks (RMS norm
    without weights, rotary attention without biases and without a causal mask, gelu MLP) and a projection to all
    components. Inputs without a position axis get one position. With `remat`, the backward pass recomputes the blocks.
    """

    d_model: int = 512
    blocks: int = 4
    heads: int = 8
    d_mlp: int = 2048
    rope_base: float = 10_000.0
    remat: bool = False

    def __post_init__(self) -> None:
        if self.d_model % self.heads or self.d_model // self.heads % 2:
            raise UserError(f"d_model={self.d_model} over {self.heads} heads: an even number of features each")

    def init(self, key: Key[Array, ""], model: Decomposed) -> TransformerFunction:
        d_in, C = total_widths(model)
        first, middle, last = jax.random.split(key, 3)
        d, zeros = self.d_model, jnp.zeros
        block = lambda key: _init_block(key, d, self.d_mlp)
        return TransformerFunction(
            Dense(normal_init(first, (d_in, d), d_in, 2**0.5), zeros(d)),
            jax.vmap(block)(jax.random.split(middle, self.blocks)),
            Dense(normal_init(last, (d, C), d), zeros(C)),
            self.heads,
            self.rope_base,
            self.remat,
        )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionBlock:
    """One pre-norm block."""

    q: Float[Array, "*layer d d"]
    k: Float[Array, "*layer d d"]
    v: Float[Array, "*layer d d"]
    o: Float[Array, "*layer d d"]
    up: Dense
    down: Dense

    def __call__(
        self, x: Float[Array, "batch pos d"], rotation: tuple[Array, Array], heads: int
    ) -> Float[Array, "batch pos d"]:
        y = rms_norm(x)
        q, k, v = (_heads(y @ w.astype(x.dtype), heads) for w in (self.q, self.k, self.v))
        # In float32: JAX's attention mixes dtypes in 16 bits, and does not run on a CPU in float16.
        z = jax.nn.dot_product_attention(*map(upcast, (_rotate(q, *rotation), _rotate(k, *rotation), v)))
        x = x + z.astype(x.dtype).reshape(x.shape) @ self.o.astype(x.dtype)
        return x + self.down(gelu(self.up(rms_norm(x))))


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TransformerFunction:
    """The importance function of `GlobalTransformer`."""

    read: Dense
    blocks: AttentionBlock  # leaves [block, ...]
    write: Dense
    heads: int = static()
    rope_base: float = static()
    remat: bool = static()

    def __call__(self, model: Decomposed, inputs: PerMatrix) -> PerMatrix:
        x = concatenate_matrices({name: rms_norm(x) for name, x in require_vectors(inputs).items()})
        flat = x.ndim == 2
        x = self.read(x[:, None] if flat else x)
        rotation = _rotation(x.shape[1], x.shape[2] // self.heads, self.rope_base, x.dtype)
        apply = lambda x, block: (block(x, rotation, self.heads), None)
        x, _ = jax.lax.scan(jax.checkpoint(apply, prevent_cse=False) if self.remat else apply, x, self.blocks)
        y = self.write(x)
        return split_components(y[:, 0] if flat else y, model)


def rms_norm(x: Float[Array, "*rows d"]) -> Float[Array, "*rows d"]:
    """x divided by its root mean square, without weights. The eps is the machine epsilon of the dtype."""
    y = x.astype(jnp.float32)
    eps = jnp.asarray(jnp.finfo(x.dtype).eps, jnp.float32)
    return (y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)).astype(x.dtype)


def _init_block(key: Array, d: int, d_mlp: int) -> AttentionBlock:
    q, k, v, o, up, down = jax.random.split(key, 6)
    square = partial(normal_init, shape=(d, d), fan_in=d)
    return AttentionBlock(
        square(q), square(k), square(v), square(o),
        Dense(normal_init(up, (d, d_mlp), d, 2**0.5), jnp.zeros(d_mlp)),
        Dense(normal_init(down, (d_mlp, d), d_mlp), jnp.zeros(d)),
    )  # fmt: skip


def _heads(x: Array, heads: int) -> Float[Array, "batch pos head d_head"]:
    return x.reshape(*x.shape[:-1], heads, -1)


def _rotation(length: int, d_head: int, base: float, dtype: Any) -> tuple[Array, Array]:
    """cos and sin of position times frequency, `[pos, 1, d_head]`, the same in both halves."""
    freq = base ** (-jnp.arange(0, d_head, 2, dtype=jnp.float32) / d_head)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * freq[None, :]
    angle = jnp.concatenate([angle, angle], axis=-1)[:, None, :]
    return jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)


def _rotate(x: Float[Array, "batch pos head d_head"], cos: Array, sin: Array) -> Float[Array, "batch pos head d_head"]:
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    return x * cos[None] + turned * sin[None]
