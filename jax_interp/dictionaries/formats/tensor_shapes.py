"""Check the tensors of a published dictionary: their names, shapes and dtypes.

    tensors, sizes = checked(files.tensors("params.npz"), "params.npz", {"W_enc": "d m", "b_enc": "m", ...})
    sizes["m"]

A tensor that is missing, not expected, of another shape or not of floating point is refused by name: it may change what
the dictionary computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError

Axes = Mapping[str, str]
"""The axes of each tensor, one letter or word per axis: {"W_enc": "d m"}. "" is a single number."""


def checked(
    found: Mapping[str, Any],
    where: str,
    required: Axes,
    optional: Axes = MappingProxyType({}),
    sizes: Mapping[str, int] = MappingProxyType({}),
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The tensors, and the size of each named axis.

    Args:
      found: the tensors of the file. They are not copied.
      where: the name of the file, for messages.
      required: the axes of the tensors that must be there. Axes of one name have one size.
      optional: the axes of the tensors that may be there.
      sizes: sizes of axes that are known beforehand, from a config file for example.

    Raises:
      UserError: a tensor is missing, not expected, of another shape than its axes, or not of floating point.
    """
    axes, known = {**required, **optional}, dict(sizes)
    if missing := sorted(required.keys() - found.keys()):
        raise UserError(f"{where} has no {missing[0]!r}; it has {_listed(found)}")
    if unknown := sorted(found.keys() - axes.keys()):
        raise UserError(
            f"{where} has {unknown[0]!r}, which is not part of this format: it may change what the dictionary "
            f"computes. Known are {_listed(axes)}"
        )
    tensors: dict[str, np.ndarray] = {}
    for name in (name for name in axes if name in found):
        array, expected = found[name], axes[name].split()
        if not isinstance(array, np.ndarray) or not jnp.issubdtype(array.dtype, jnp.floating):
            kind = getattr(array, "dtype", type(array).__name__)
            raise UserError(f"{where}: {name!r} is {kind}, not an array of floating-point numbers")
        fits = len(expected) == array.ndim and 0 not in array.shape
        fits = fits and all(known.setdefault(axis, size) == size for axis, size in zip(expected, array.shape))
        if not fits:
            named = ", ".join(f"{axis} = {known[axis]}" if axis in known else axis for axis in expected)
            raise UserError(f"{where}: {name!r} has shape {list(array.shape)}, it should be [{named}]")
        tensors[name] = array
    return tensors, known


def one_dtype(arrays: Mapping[str, np.ndarray], like: str) -> dict[str, np.ndarray]:
    """The arrays in the dtype of one of them. A dictionary computes in one dtype, that of its encoder."""
    dtype = arrays[like].dtype
    return {name: array if array.dtype == dtype else array.astype(dtype) for name, array in arrays.items()}


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "nothing"
