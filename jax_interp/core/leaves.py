"""A pytree as a flat dict `{address: leaf}`. Checkpoints store it, and sharding rules match its addresses.

The address of a leaf is its key path joined by dots (`params.blocks.0.attn.q.weight`, `opt.0.mu.W_dec`). It does not
depend on the container class: a dict, a list, a registered dataclass, an optax named tuple and a Flax module give the
same addresses. A checkpoint can therefore be restored after a class is renamed. Orbax never sees an `nnx.List`, which
it can save but cannot load.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from jax_interp.core.errors import UserError

PyTree = Any
"""A tree of arrays in any container that JAX knows: dicts, lists, registered dataclasses, Flax modules."""


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

    A Flax variable adds a last part `.value` to the key path. This part is dropped if the variable has only one leaf.

    Args:
      tree: any pytree.

    Returns:
      One address for each leaf. If the tree is a single leaf, its address is "".

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


def check_finite(tree: PyTree, what: str) -> None:
    """Raise UserError if a weight of `tree` is NaN or infinite.

    Args:
      tree: any pytree. Leaves that are not floating arrays, or that are traced, are not checked. -inf is accepted in
        leaves whose name begins with "log_": it is the logarithm of 0.
      what: the name of the tree in the message.
    """
    bad = [
        name
        for name, leaf in flatten(tree).items()
        if isinstance(leaf, (jax.Array, np.ndarray))
        and not isinstance(leaf, Tracer)
        and jnp.issubdtype(leaf.dtype, jnp.floating)
        and not bool(_is_finite(leaf, name.rpartition(".")[2].startswith("log_")))
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(
            f"{what} has weights that are NaN or infinite: {', '.join(bad[:3])}{more}. Its file is damaged, or its "
            "training diverged"
        )


@jax.jit
def _is_finite(leaf: jax.Array, is_logarithm: jax.Array | bool) -> jax.Array:
    return jnp.all(jnp.isfinite(leaf) | (is_logarithm & (leaf == -jnp.inf)))


def is_key(leaf: Any) -> bool:
    """Whether `leaf` is a typed PRNG key array, or the abstract value of a key array."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
