"""On a CPU, take the steps of generation through separate blocks, without a copy of the weights.

`lax.scan` slices the weights of the running layer out of the stack. XLA for CPUs copies this slice, in every layer and
at every new token, which takes about as long as its products with one token of each row. So the steps after the prompt
run blocks whose arrays are views of the memory of the stack. The prompt itself runs through the scan, which compiles
faster and copies only once.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.core
import numpy as np

from jax_interp.models.cache import Cache
from jax_interp.surgery import Block, Segment, iter_segments
from jax_interp.surgery.contract import Model
from jax_interp.surgery.stack import index_layer, with_blocks
from jax_interp.surgery.taps import Wrapper

M = TypeVar("M")

SMALLEST_LAYER = 2**23
"""Layers of fewer bytes stay scanned: what their copies take is less than the compilation of separate blocks."""
_ALIGNMENT = 64
"""An array of JAX can be a view of memory that begins at a multiple of this number of bytes."""


def unstacked_views(model: M, smallest: int = SMALLEST_LAYER) -> M | None:
    """The same model with separate blocks in place of its stacks. Their arrays are views of the memory of the stacks.

    Args:
      model: a model, under surgery or not.
      smallest: stacks whose layers have fewer bytes than this stay stacked.

    Returns:
      The model; or None if no stack needs this, or one cannot be viewed: its arrays are traced, sharded, or not on a
      CPU, or the rows of its large arrays are not aligned, so that they would have to be copied.
    """
    if isinstance(model, Wrapper):
        inside = unstacked_views(model.model, smallest)
        return None if inside is None else dataclasses.replace(model, model=inside)  # type: ignore[return-value]
    segments = list(iter_segments(model))  # type: ignore[arg-type]
    if not any(segment.stacked for segment in segments):
        return None
    blocks: list[Block] = []
    for segment in segments:
        views = _views(segment, smallest) if segment.stacked else [segment.block]
        if views is None:
            return None
        blocks.extend(views)
    return with_blocks(model, blocks)  # type: ignore[type-var]


def unstacked_cache(cache: Cache, model: Model) -> Cache:
    """The cache of `model` with one entry for each layer, as the model that `unstacked_views` returns takes it."""
    layers = []
    for entry, segment in zip(cache.layers, iter_segments(model), strict=True):
        layers.extend([index_layer(entry, i) for i in range(len(segment.layers))] if segment.stacked else [entry])
    return dataclasses.replace(cache, layers=layers)


def _views(segment: Segment, smallest: int) -> list[Block] | None:
    """The blocks of a stack as views. None if a view of an array would be a copy."""
    leaves, structure = jax.tree.flatten(segment.block)
    if not all(map(is_in_host_memory, leaves)):
        return None
    sizes = [leaf.nbytes // len(segment.layers) for leaf in leaves]
    unaligned = sum(size for size in sizes if size % _ALIGNMENT)
    if sum(sizes) < smallest or unaligned > sum(sizes) / 100:
        return None
    stacks = [(np.asarray(leaf), leaf.sharding) for leaf in leaves]
    depth = len(segment.layers)
    rows = [[jax.device_put(stack[i], where, may_alias=True) for stack, where in stacks] for i in range(depth)]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in rows[0]):  # inside a traced function, arrays become constants
        return None
    return [jax.tree.unflatten(structure, row) for row in rows]


def is_in_host_memory(leaf: Any) -> bool:
    """Whether NumPy can view an array: its values are known, on one device, which is a CPU."""
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return False
    alone = isinstance(leaf.sharding, jax.sharding.SingleDeviceSharding)
    return alone and next(iter(leaf.devices())).platform == "cpu"
