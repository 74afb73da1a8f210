"""A decoder rebuilt with other weights: a copy, changed block by block in whatever layout its blocks have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

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


def copy(model: Decoder, verb: str) -> Decoder:
    """A copy that shares the arrays, to be given other ones. Raises `UserError` for what is no decoder."""
    if not isinstance(model, Decoder):
        raise UserError(
            f"{verb} takes a Decoder, got {type(model).__name__}: process the model first, then read and edit it"
        )
    return jax.tree.map(lambda leaf: leaf, model)


def each_block(model: Decoder, change: Callable[[Block], Any]) -> None:
    """Let `change` set parts of every block, one layer at a time, in whatever layout the blocks have."""

    def changed(block: Block) -> Block:
        change(block)
        return block

    model.blocks = map_blocks(model, changed).blocks


def values_of(parameter: nnx.Param | None) -> Array:
    """Its values in float32 at least, in which all processing is done."""
    assert parameter is not None
    return upcast(parameter[...])


def put(parameter: nnx.Param | None, value: Array) -> nnx.Param:
    """A parameter with another value, of the old one's dtype."""
    assert parameter is not None
    return nnx.Param(value.astype(parameter[...].dtype))


def with_bias(linear: Linear) -> None:
    """Give it a bias of zeros where it has none."""
    if linear.bias is None:
        linear.bias = nnx.data(nnx.Param(jnp.zeros_like(linear.weight[...][..., 0, :])))


def untie(model: Decoder) -> Linear:
    """The unembedding `[d_model, vocab]` as a part of its own, made from the embedding where that is used twice."""
    if model.unembed is None:
        weight = model.embed.weight[...].T
        unembed = jax.eval_shape(lambda key: Linear(key, *weight.shape, bias=False, std=1, dtype=weight.dtype), _KEY)
        unembed.weight = nnx.Param(weight)
        model.unembed = nnx.data(unembed)
        reconfigure(model, tied_embedding=False)
    return model.unembed


def reconfigure(model: Decoder, **changes: Any) -> Config:
    model.config = dataclasses.replace(model.config, **changes)
    return model.config


def mean(x: Float[Array, "..."], axis: int) -> Array:
    return jnp.mean(x, axis=axis, keepdims=True)


_KEY = jax.eval_shape(lambda: jax.random.key(0))
