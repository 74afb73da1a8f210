"""Segments: the layout of the blocks of a model, and functions that walk the blocks.

The `blocks` of a model are a list of segments. A segment is an unrolled block, or a `Stack`: one block whose leaves
have a leading layer axis. A `Stack` is run by `lax.scan`, so compile time does not grow with depth. `replan` converts
one layout into another; addresses and values stay the same.

Code that works on blocks need not know the kind of a segment. It uses one of these functions:

    iter_blocks(model)               (layer, block) of every layer
    get_block(model, 3)              one block
    map_blocks(model, fn)            the model with fn(block) in place of every block
    blocks_as_pytree(model, part)    part(block) of every block, as one pytree with leaves [layer, ...]
    iter_segments(model)             the segments, where the layout itself matters (sharding, files, caches)
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from jax_interp.core.short_repr import ShortRepr
from jax_interp.surgery.address import Address, AddressError
from jax_interp.surgery.contract import Block, LayeredModel, Model
from jax_interp.surgery.taps import Wrapper

M = TypeVar("M", bound=LayeredModel)


class Stack(ShortRepr, nnx.Module):
    """`depth` blocks of one structure, stored as a single block whose leaves have a leading layer axis.

    Args:
      block: the block whose leaves are `[layer, ...]`. `jax.vmap` of a function that makes one block returns it.
    """

    def __init__(self, block: Block):
        self.block = nnx.data(block)  # a block need not be an nnx module

    @property
    def depth(self) -> int:
        """The number of layers."""
        return jax.tree.leaves(self.block)[0].shape[0]

    @classmethod
    def of(cls, blocks: Sequence[Block]) -> Stack:
        """Stack blocks of the same structure. Raises ValueError if they differ."""
        if any(_signature(block) != _signature(blocks[0]) for block in blocks):
            raise ValueError("only blocks of one structure, with leaves of one shape and dtype, can be stacked")
        return cls(jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks))

    def unstack(self) -> list[Block]:
        """The blocks, one by one."""
        return [index_layer(self.block, i) for i in range(self.depth)]


@dataclasses.dataclass(frozen=True)
class Segment:
    """One segment of a model's blocks, as `iter_segments` returns it.

    Attributes:
      block: the block; its leaves are `[layer, ...]` if the segment is a `Stack`.
      layers: the numbers of its layers.
      stacked: whether the segment is a `Stack`.
    """

    block: Block
    layers: range
    stacked: bool

    def map(self, fn: Callable[..., Any], *values: PyTree) -> Any:
        """`fn(block, *values)`, applied to each layer of a `Stack` by `jax.vmap`. `values` then have a layer axis."""
        return jax.vmap(fn)(self.block, *values) if self.stacked else fn(self.block, *index_layer(values, 0))


def iter_segments(model: Model | Iterable[Block | Stack]) -> Iterator[Segment]:
    """The segments of a model's blocks, in order.

    Args:
      model: a model with an attribute `blocks`, under surgery or not, or a list of segments. A model without blocks
        has no segments.
    """
    blocks = getattr(model, "blocks", model if isinstance(model, Iterable) else ())
    first = 0
    for segment in blocks:
        stacked = isinstance(segment, Stack)
        depth = segment.depth if stacked else 1
        yield Segment(segment.block if stacked else segment, range(first, first + depth), stacked)
        first += depth


def depth_of(model: Model | Iterable[Block | Stack]) -> int:
    """The number of layers of a model, or of a list of segments."""
    return sum(len(segment.layers) for segment in iter_segments(model))


def iter_blocks(model: Model | Iterable[Block | Stack]) -> Iterator[tuple[int, Block]]:
    """`(layer, block)` for every layer of a model, or of a list of segments. A block of a `Stack` is a slice of it."""
    for segment in iter_segments(model):
        for i, layer in enumerate(segment.layers):
            yield layer, index_layer(segment.block, i) if segment.stacked else segment.block


def get_block(model: Model | Iterable[Block | Stack], layer: int) -> Block:
    """The block of one layer. Raises `AddressError` if there is none."""
    for segment in iter_segments(model):
        if layer in segment.layers:
            return index_layer(segment.block, segment.layers.index(layer)) if segment.stacked else segment.block
    depth = depth_of(model)
    has = f"has blocks.0 to blocks.{depth - 1}" if depth else "has no blocks"
    raise AddressError(f"there is no block {layer}: this model {has}")


def map_blocks(model: M, fn: Callable[..., Block], *values: PyTree) -> M:
    """A model with `fn(block, *values)` in place of every block. The layout stays the same, and `model` is unchanged.

    Args:
      model: a model with an attribute `blocks`, under surgery or not.
      fn: called with the block of one layer. For a `Stack` it is called once, under `jax.vmap`. It may modify its
        argument and return it.
      values: pytrees with leaves `[layer, ...]`. `fn` gets the entry of its layer.
    """
    if isinstance(model, Wrapper):
        return dataclasses.replace(model, model=map_blocks(model.model, fn, *values))  # type: ignore[type-var]
    segments = []
    for segment in iter_segments(model):
        rows = jax.tree.map(lambda leaf, s=segment: leaf[s.layers.start : s.layers.stop], values)
        copied = dataclasses.replace(segment, block=jax.tree.map(lambda leaf: leaf, segment.block))
        changed = copied.map(fn, *rows)
        segments.append(Stack(changed) if segment.stacked else changed)
    return with_blocks(model, segments)


def blocks_as_pytree(
    model: Model | Iterable[Block | Stack], part: Callable[[Any], PyTree] = lambda block: block
) -> PyTree:
    """`part(block)` of every block as one pytree, whose leaves have a leading layer axis.

    Args:
      model: a model with an attribute `blocks`, under surgery or not, or a list of segments.
      part: returns a part of a block: an attribute, or a pytree of several. It must only select and not compute,
        because for a `Stack` it is called once, on leaves with a layer axis.

    Example:
        blocks_as_pytree(model, lambda block: block.mlp.out.weight[...])    # [layer, d_mlp, d_model]
    """
    rows = []
    for segment in iter_segments(model):
        leaves = part(segment.block)
        rows.append(leaves if segment.stacked else jax.tree.map(lambda leaf: leaf[None], leaves))
    return rows[0] if len(rows) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)


def replan(model: M, unroll: str | int | Iterable = ()) -> M:
    """The same model in another layout: the layers in `unroll` become separate blocks, all other layers are scanned.

    Neighbouring blocks of different structure cannot be scanned together. The second block then starts a new `Stack`.

    Args:
      model: a model with an attribute `blocks`, under surgery or not.
      unroll: a layer, a slice written as text, "*" for all layers, or a list of these.

    Returns:
      A copy of the model. Blocks that change their layout are copied. All other arrays are shared.

    Raises:
      AddressError: `unroll` names no layer of the model.
      TypeError: the model has no attribute `blocks`.

    Example:
        replan(model)                 # everything scanned
        replan(model, "*")            # everything unrolled
        replan(model, "4:6")          # layers 4 and 5 unrolled, the rest scanned
        replan(model, [0, -1])        # the first and the last layer unrolled
    """
    if isinstance(model, Wrapper):
        return dataclasses.replace(model, model=replan(model.model, unroll))  # type: ignore[type-var]
    if not hasattr(model, "blocks"):
        raise TypeError(f"replan needs a model with an attribute `blocks`, {type(model).__name__} has none")
    apart = _layers(unroll, depth_of(model))
    segments: list[Block | Stack] = []
    stretch: list[Block] = []

    def end_stretch():
        if stretch:
            segments.append(Stack.of(stretch))
            stretch.clear()

    for layer, block in iter_blocks(model):
        if layer in apart or (stretch and _signature(stretch[-1]) != _signature(block)):
            end_stretch()
        if layer in apart:
            segments.append(block)
        else:
            stretch.append(block)
    end_stretch()
    return with_blocks(model, segments)


def with_blocks(model: M, segments: Sequence[Block | Stack]) -> M:
    """A copy of the model with other segments. It shares all other arrays."""
    if dataclasses.is_dataclass(model) and not isinstance(model, type):
        return dataclasses.replace(model, blocks=list(segments))
    copy = jax.tree.map(lambda leaf: leaf, model)
    copy.blocks = nnx.List(segments)
    return copy


def index_layer(tree: PyTree, i: int) -> PyTree:
    """Entry `i` of the leading layer axis of every leaf."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _layers(unroll: str | int | Iterable, depth: int) -> set[int]:
    if not isinstance(unroll, str) and isinstance(unroll, Iterable):
        return {layer for part in unroll for layer in _layers(part, depth)}
    text = unroll if isinstance(unroll, (str, bool)) else operator.index(unroll)
    address = Address.parse(f"blocks.{text}.it")
    if not address.layers or address.name != "it":
        raise AddressError(f"unroll={unroll!r} is no layer: give a number, a slice such as '2:4', '*', or several")
    return set(address.resolve(depth) or ())


def _signature(block: Block) -> tuple:
    """The structure, shapes and dtypes of a block. Blocks can be stacked if these are equal."""
    leaves, structure = jax.tree.flatten(block)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
