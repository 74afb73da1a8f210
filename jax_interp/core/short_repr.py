"""Reprs that fit a screen: an array is its dtype and shape, and long parts are cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import numpy as np
from flax import nnx

_ENTRIES, _CHARACTERS = 8, 120


class ShortRepr:
    """A base class of dataclasses and modules with a repr that fits a screen. Subclasses get it too."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__repr__" not in cls.__dict__:
            cls.__repr__ = short_repr  # type: ignore[method-assign]  # before `dataclass` would make one


def short_repr(x: Any) -> str:
    """What `x` is, in a few lines.

    Args:
      x: anything. Arrays are written as dtype and shape, dataclasses with the fields that have a value
        other than their default, modules with the number of their parameters.

    Returns:
      The text.

    Example:
        short_repr(at("blocks.3.resid_post", Add(vector, 4.0)))
        # Edit(fn=Add(vector=float32[768], coefficient=4.0), address='blocks.3.resid_post')
    """
    if isinstance(x, nnx.Module):
        config = getattr(x, "config", None)
        parts = [short_repr(config)] if dataclasses.is_dataclass(config) else []
        return f"{type(x).__name__}({', '.join([*parts, _size(x)])})"
    if isinstance(x, nnx.Variable):
        return short_repr(x.get_value())
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        known = isinstance(x, (np.ndarray, np.generic, jax.Array)) and not isinstance(x, jax.core.Tracer)
        if known and x.shape == () and np.issubdtype(x.dtype, np.number):
            return f"{np.asarray(x).item():.4g}"
        return f"{x.dtype}{list(x.shape)}"
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        fields = [(field.name, getattr(x, field.name), field.default) for field in dataclasses.fields(x) if field.repr]
        shown = [
            f"{name}={short_repr(value)}"
            for name, value, default in fields
            if not (value is None or _same(value, default))
        ]
        return f"{type(x).__name__}({', '.join(shown)})"
    if isinstance(x, Mapping):
        return (
            "{" + _joined([f"{key!r}: {short_repr(value)}" for key, value in list(x.items())[:_ENTRIES]], len(x)) + "}"
        )
    if isinstance(x, (list, tuple)):
        inner = _joined([short_repr(value) for value in x[:_ENTRIES]], len(x))
        return f"[{inner}]" if isinstance(x, list) else f"({inner},)" if len(x) == 1 else f"({inner})"
    text = repr(x)
    return text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…"


def _size(x: Any) -> str:
    leaves = [leaf for leaf in jax.tree.leaves(x) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
    dtypes = sorted({str(leaf.dtype) for leaf in leaves})
    return f"{sum(int(np.prod(leaf.shape)) for leaf in leaves):,} parameters, {' and '.join(dtypes) or 'none'}"


def _same(value: Any, default: Any) -> bool:
    """Whether a field has its default. Only plain values are compared, because `==` of arrays is an array."""
    plain = (type(None), bool, int, float, str, tuple)
    return value is default or (isinstance(value, plain) and isinstance(default, plain) and value == default)


def _joined(parts: list[str], n: int) -> str:
    return ", ".join(parts if n <= _ENTRIES else [*parts, f"… {n - _ENTRIES} more"])
