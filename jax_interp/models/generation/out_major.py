"""On a CPU, store the matrices of the blocks output by output for the steps of generation.

A step multiplies each matrix with a few rows. XLA for CPUs does this product at about half of the speed of the memory
if the matrix is `[d_in, d_out]`, and close to it if the matrix is `[d_out, d_in]` and the product has the outputs first
(`core/linear.py`, `few_rows_product`). So the matrices are transposed once before the steps. This takes the time of a
few steps, and memory for one more copy of the blocks while the text is written.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jax_interp.core.layer import Scope
from jax_interp.core.linear import FEW_ROWS, Linear, few_rows_product
from jax_interp.models.generation.unstacking import SMALLEST_LAYER, is_in_host_memory, unstacked_views
from jax_interp.surgery import iter_segments
from jax_interp.surgery.stack import with_blocks
from jax_interp.surgery.taps import Wrapper

M = TypeVar("M")

FEWEST_STEPS = 24
"""For fewer steps, the transposition takes longer than it saves."""
LARGEST = 2**32
"""Blocks of more bytes are not copied."""


class OutMajor(nnx.Module):
    """A `Linear` whose weight is stored as `[d_out, d_in]`."""

    def __init__(self, rows: Float[Array, "d_out d_in"], bias: Any):
        self.rows, self.bias = nnx.Param(rows), bias

    @property
    def weight(self) -> Float[Array, "d_in d_out"]:
        """The weight as `Linear` has it."""
        return self.rows[...].T

    def __call__(
        self, x: Float[Array, "batch pos d_in"], site: Scope, out_sharding: P | None = None
    ) -> Float[Array, "batch pos d_out"]:
        """Apply the map to a few rows."""
        y = few_rows_product(x, self.rows[...])
        return y if self.bias is None else y + jnp.expand_dims(self.bias[...], (0, 1))


def for_steps(model: M, rows: int, steps: int) -> M:
    """The model for the steps of generation: with transposed matrices, where that saves time.

    Args:
      model: a model, under surgery or not. A model with stacks stays as it is.
      rows: the number of rows of the batch.
      steps: the number of steps that the matrices are used for.
    """
    if not 1 < rows <= FEW_ROWS or steps < FEWEST_STEPS:
        return model
    if isinstance(model, Wrapper):
        inside = for_steps(model.model, rows, steps)
        return model if inside is model.model else dataclasses.replace(model, model=inside)  # type: ignore[return-value]
    segments = list(iter_segments(model))  # type: ignore[arg-type]
    if any(segment.stacked for segment in segments):
        return model
    leaves = jax.tree.leaves([segment.block for segment in segments])
    size = sum(leaf.nbytes for leaf in leaves if hasattr(leaf, "nbytes"))
    if not SMALLEST_LAYER * len(segments) <= size <= LARGEST or not all(map(is_in_host_memory, leaves)):
        return model
    return with_blocks(model, [_transposed(segment.block) for segment in segments])  # type: ignore[type-var]


@jax.jit
def _transposed(block: Any) -> Any:
    """The block with every `Linear` as an `OutMajor`."""
    linear = lambda node: type(node) is Linear
    return jax.tree.map(
        lambda node: OutMajor(node.weight[...].T, node.bias) if linear(node) else node, block, is_leaf=linear
    )


def stepping_model(model: M, rows: int, steps: int) -> M | None:
    """The model that takes the steps of generation, if it is not the model itself.

    Args:
      model: a model, under surgery or not.
      rows: the number of rows of the batch.
      steps: the number of steps.
    """
    views = unstacked_views(model)
    separate = model if views is None else views
    stepping = for_steps(separate, rows, steps)
    return None if stepping is model else stepping
