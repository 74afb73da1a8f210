"""What the processing functions share: a copy of a decoder, and changes to its parts in any layout of the blocks."""

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
    """A copy of the model that shares its arrays. Raises `UserError` where `model` is not a decoder."""
    if not isinstance(model, Decoder):
        raise UserError(
            f"{function} takes a Decoder, got {type(model).__name__}: process the model first, then read and edit it"
        )
    return jax.tree.map(lambda leaf: leaf, model)


def each_block(model: Decoder, change: Callable[[Block], object]) -> None:
    """Apply `change`, which sets parts of a block, to every block in turn, in any layout of the blocks."""

    def changed(block: Block) -> Block:
        change(block)
        return block

    model.blocks = map_blocks(model, changed).blocks


def values_of(parameter: nnx.Param | None) -> Array:
    """The values of a parameter in float32 at least."""
    assert parameter is not None
    return upcast(parameter[...])


def with_value(parameter: nnx.Param | None, value: Array) -> nnx.Param:
    """A parameter with another value, in the dtype of the old one."""
    assert parameter is not None
    return nnx.Param(value.astype(parameter[...].dtype))


def ensure_bias(linear: LinearMap) -> None:
    """Give a linear map a bias of zeros where it has none."""
    if linear.bias is None:
        linear.bias = nnx.data(nnx.Param(jnp.zeros_like(linear.weight[...][..., 0, :])))


def untie(model: Decoder) -> Linear:
    """The unembedding `[d_model, vocab]`. Where it is tied, it is made from the embedding, and untied from it."""
    if model.unembed is None:
        weight = model.embed.weight[...].T
        unembed = jax.eval_shape(lambda key: Linear(key, *weight.shape, bias=False, std=1, dtype=weight.dtype), _KEY)
        unembed.weight = nnx.Param(weight)
        model.unembed = nnx.data(unembed)
        reconfigure(model, tied_embedding=False)
    return model.unembed


def reconfigure(model: Decoder, **changes: Any) -> Config:
    """Set the model's config with these fields changed."""
    model.config = dataclasses.replace(model.config, **changes)
    return model.config


def centred(x: Float[Array, "..."], axis: int) -> Array:
    """`x` minus its mean over an axis."""
    return x - jnp.mean(x, axis=axis, keepdims=True)


_KEY = jax.eval_shape(lambda: jax.random.key(0))
