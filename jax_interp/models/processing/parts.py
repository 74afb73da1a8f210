"""Helpers of the processing functions: copy a decoder, and change its parts in any layout of the blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.linear import Linear
from jax_interp.models.block import Block
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder
from jax_interp.surgery import map_blocks


class LinearMap(Protocol):
    """A linear map, or the maps of all experts."""

    weight: nnx.Param
    """`[..., d_in, d_out]`."""
    bias: nnx.Param | None


def copied(model: Decoder, function: str) -> Decoder:
    """A copy of the model that shares its arrays. Raises `UserError` if `model` is not a decoder."""
    if not isinstance(model, Decoder):
        raise UserError(
            f"{function} takes a Decoder, got {type(model).__name__}: process the model first, then read and edit it"
        )
    return jax.tree.map(lambda leaf: leaf, model)


def each_block(model: Decoder, change: Callable[[Block], object]) -> None:
    """Apply `change` to every block, in any layout of the blocks. `change` modifies its argument."""

    def changed(block: Block) -> Block:
        change(block)
        return block

    model.blocks = map_blocks(model, changed).blocks


def values_of(parameter: nnx.Param | None) -> Array:
    """The values of a parameter, in at least float32."""
    assert parameter is not None
    return upcast(parameter[...])


def with_value(parameter: nnx.Param | None, value: Array) -> nnx.Param:
    """A parameter with another value and the same dtype."""
    assert parameter is not None
    return nnx.Param(value.astype(parameter[...].dtype))


def ensure_bias(linear: LinearMap) -> None:
    """Add a bias of zeros to a linear map if it has no bias."""
    if linear.bias is None:
        linear.bias = nnx.data(nnx.Param(jnp.zeros_like(linear.weight[...][..., 0, :])))


def untie(model: Decoder) -> Linear:
    """The unembedding `[d_model, vocab]`. If it is tied to the embedding, it is first replaced by a copy."""
    if model.unembed is None:
        weight = model.embed.weight[...].T
        unembed = jax.eval_shape(lambda key: Linear(key, *weight.shape, bias=False, std=1, dtype=weight.dtype), _KEY)
        unembed.weight = nnx.Param(weight)
        model.unembed = nnx.data(unembed)
        reconfigure(model, tied_embedding=False)
    return model.unembed


def reconfigure(model: Decoder, **changes: Any) -> Config:
    """Change fields of the model's config."""
    model.config = dataclasses.replace(model.config, **changes)
    return model.config


def centred(x: Float[Array, "..."], axis: int) -> Array:
    """`x` minus its mean over an axis."""
    return x - jnp.mean(x, axis=axis, keepdims=True)


_KEY = jax.eval_shape(lambda: jax.random.key(0))
