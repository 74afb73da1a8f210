"""`register_dataclass`: make a dataclass a pytree.

Use it in place of `jax.tree_util.register_dataclass`. For JAX (0.10.2), the tree structures of two classes that were
registered by its own function are equal if their static fields are equal and they have the same number of children:
the class is not compared. The classes only differ in their hash. A cache of compiled programs compares a part of the
hash and then the structures, so that once in about a hundred processes `jax.jit` runs the program of
`Freeze(value)` for `Replace(value)`, without an error. A structure of this function's classes contains the class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
from jax.tree_util import GetAttrKey

T = TypeVar("T")


def register_dataclass(
    cls: type[T], data_fields: Sequence[str] | None = None, meta_fields: Sequence[str] | None = None
) -> type[T]:
    """Register a dataclass as a pytree whose structure contains its class. It can be used as a class decorator.

    Args:
      cls: a dataclass. Every field must be a parameter of its constructor.
      data_fields: the names of the fields that are subtrees. None: all fields that are not static.
      meta_fields: the names of the fields that are structure, with values that can be compared and hashed. None: the
        fields with `metadata={"static": True}`.

    Returns:
      The class.

    Raises:
      TypeError: `cls` is no dataclass, or the two lists are not exactly its fields.

    Example:
        @register_dataclass
        @dataclasses.dataclass(frozen=True)
        class Shift:
            by: jax.Array

            def __call__(self, value):
                return value + self.by
    """
    make: Callable[..., Any] = cls
    if not dataclasses.is_dataclass(make):
        raise TypeError(f"{cls.__name__} is no dataclass: decorate it with @dataclasses.dataclass(frozen=True) first")
    fields = dataclasses.fields(make)
    if data_fields is None or meta_fields is None:
        data_fields = [field.name for field in fields if not field.metadata.get("static", False)]
        meta_fields = [field.name for field in fields if field.metadata.get("static", False)]
    data, meta = tuple(data_fields), tuple(meta_fields)
    if sorted(data + meta) != sorted(field.name for field in fields) or not all(field.init for field in fields):
        raise TypeError(
            f"{cls.__name__} has the fields {[field.name for field in fields]}, and its pytree {list(data + meta)}: "
            "each field must be named once, and be a parameter of the constructor"
        )
    keys = tuple(GetAttrKey(name) for name in data)

    def structure(node: Any) -> tuple[Any, ...]:
        return tuple([getattr(node, name) for name in meta])

    def flatten(node: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple([getattr(node, name) for name in data]), structure(node)

    def flatten_with_keys(node: Any) -> tuple[Any, tuple[Any, ...]]:
        return tuple([(key, getattr(node, key.name)) for key in keys]), structure(node)

    def unflatten(values: tuple[Any, ...], children: Iterable[Any]) -> Any:
        return make(**dict(zip(data, children)), **dict(zip(meta, values)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
