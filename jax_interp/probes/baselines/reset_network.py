"""The reset network: the same architecture with weights that were never trained.

    probes on gather(reset(model, key), data, at)       what can be read without training

A random network keeps much of its input, and one random layer with a non-linearity makes combinations of features
linearly readable (XOR among them). What a probe reads no better than from the reset network, the model has not learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import addresses, is_key
from jax_interp.surgery import Model, depth_of, map_blocks
from jax_interp.surgery.stack import iter_segments

M = TypeVar("M", bound=Model)


def reset(model: M, key: Key[Array, ""], keep: Callable[[str], bool] = lambda address: False) -> M:
    """Draw all weights anew: each array of each layer from the normal distribution with its own mean and deviation.

    Scales of norms that are 1 everywhere and biases that are 0 everywhere stay as they are. Integers and keys stay too.
    The weights of edits (a spliced dictionary) are drawn anew like all others.

    Args:
      model: any model. It is not changed.
      key: the key of the weights.
      keep: whether the array with this address (`core.leaves.addresses`) outside of blocks stays as it is, such as a
        table of constants.

    Raises:
      UserError: the model has no floating-point array, or one has entries that are not finite.
    """
    floats = [leaf for leaf in jax.tree.leaves(model) if _is_weight(leaf)]
    if not floats:
        raise UserError(f"{type(model).__name__} has no weights to draw anew")
    if not bool(_all_finite(floats)):
        raise UserError("a weight of the model is not finite, so it has no mean and no deviation")
    within, outside = jax.random.split(key)
    if depth := depth_of(model):
        model = _redrawn_blocks(model, jax.random.split(within, depth))
    of_blocks = {id(leaf) for segment in iter_segments(model) for leaf in jax.tree.leaves(segment.block)}
    leaves, structure = jax.tree.flatten(model)
    stays = [id(leaf) in of_blocks or keep(address) for leaf, address in zip(leaves, addresses(model), strict=True)]
    drawn = _redrawn(leaves, outside)
    return jax.tree.unflatten(structure, [old if kept else new for old, new, kept in zip(leaves, drawn, stays)])


@jax.jit
def _all_finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]).all()


@jax.jit
def _redrawn_blocks(model: Any, keys: Key[Array, " layer"]) -> Any:
    return map_blocks(model, _redrawn, keys)


@jax.jit
def _redrawn(tree: PyTree, key: Key[Array, ""]) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(structure, [_like(leaf, key) for leaf, key in zip(leaves, keys)])


def _like(leaf: Array, key: Key[Array, ""]) -> Array:
    if not _is_weight(leaf):
        return leaf
    wide = leaf.astype(jnp.float32)
    noise = jax.random.normal(key, leaf.shape, jnp.float32)
    return (jnp.mean(wide) + jnp.std(wide) * noise).astype(leaf.dtype)


def _is_weight(leaf: Array) -> bool:
    return not is_key(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
