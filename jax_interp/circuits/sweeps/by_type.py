"""`ByType`: a bounded cache of what depends only on the types of some arguments: programs, and facts about a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import jax
from jaxtyping import PyTree

T = TypeVar("T")


class ByType(Generic[T]):
    """Values by the structure of a pytree and the types of its leaves. The least recently used ones are dropped.

    Args:
      size: the number of values that are kept.
    """

    def __init__(self, size: int):
        self._size = size
        self._kept: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, arguments: PyTree, static: Hashable, make: Callable[[], T]) -> T:
        """The value for arguments of these types, and for `static`. `make()` makes it if it is not there."""
        leaves, structure = jax.tree.flatten(arguments)
        flags: Any = jax.config  # its type does not declare the flags
        modes = (flags.jax_enable_x64, flags.jax_default_matmul_precision)
        key = (structure, tuple(map(_type, leaves)), static, modes)
        if key not in self._kept:
            self._kept[key] = make()
            if len(self._kept) > self._size:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def _type(leaf: Any) -> Hashable:
    if not hasattr(leaf, "shape"):
        return type(leaf)
    return leaf.shape, leaf.dtype, getattr(leaf, "sharding", None), getattr(leaf, "weak_type", False)
