"""A pytree as a flat `{address: leaf}`, which checkpoints store and sharding rules match.

The address of a leaf is its key path joined by dots (`params.blocks.0.attn.q.weight`, `opt.0.mu.W_dec`). It is the same
for a dict, a list, a registered dataclass, a named tuple of optax and a Flax module: it does not depend on the class
that holds the value. A checkpoint therefore survives a renamed class. An `nnx.List`, which orbax saves and cannot load,
never reaches orbax.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

PyTree = Any
"""A tree of arrays in any containers that JAX knows: dicts, lists, registered dataclasses, Flax modules."""


def _part(key: Any) -> str:
    match key:
        case GetAttrKey(name=name):
            return str(name)
        case DictKey(key=name) | FlattenedIndexKey(key=name):
            return str(name)
        case SequenceKey(idx=index):
            return str(index)
    return str(key).strip(".[]'\"")


def addresses(tree: PyTree) -> list[str]:
    """The address of every leaf, in the order of `jax.tree.leaves`.

    A Flax variable adds a last part `.value`. It is dropped where the variable has no other leaf.

    Args:
      tree: any pytree.

    Returns:
      One address for each leaf. A tree that is a single leaf has the address "".

    Raises:
      ValueError: two leaves have the same address, as in `{"a.b": x, "a": {"b": y}}`.

    Example:
        addresses({"w": x, "layers": [y, z]})  # ["layers.0", "layers.1", "w"]
    """
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    names = [tuple(_part(key) for key in path) for path in paths]
    siblings: dict[tuple[str, ...], int] = {}
    for name in names:
        for length in range(len(name)):
            siblings[name[:length]] = siblings.get(name[:length], 0) + 1
    out = [
        ".".join(name[:-1] if len(name) > 1 and name[-1] == "value" and siblings[name[:-1]] == 1 else name)
        for name in names
    ]
    if len(set(out)) < len(out):
        twice = sorted({name for name in out if out.count(name) > 1})
        raise ValueError(f"two leaves of one tree have the same address: {', '.join(twice)}; rename a key")
    return out


def flatten(tree: PyTree) -> dict[str, Any]:
    """`{address: leaf}`, in the order of `jax.tree.leaves`."""
    return dict(zip(addresses(tree), jax.tree.leaves(tree), strict=True))


def unflatten(template: PyTree, flat: dict[str, Any]) -> PyTree:
    """The tree with the structure of `template` and the leaves of `flat`.

    Raises:
      KeyError: a leaf is missing.
    """
    return jax.tree.unflatten(jax.tree.structure(template), [flat[address] for address in addresses(template)])


def is_key(leaf: Any) -> bool:
    """Whether `leaf` is a typed PRNG key array, or the abstract value of one."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
