"""Weights that are split over `fsdp` are gathered for use, layer by layer, in the forward and in the backward pass.

Where the compiler chooses the shardings inside a step, it may instead split the activations by features and sum them
over `fsdp`. The gradient of a language model of 21 MB then moved five times as many bytes, and needed twice the memory.
So a block says how its weights are used: whole over `fsdp`, and still split over `tensor`. Between the layers, and for
the backward pass, only the own part of each weight is kept (Rajbhandari et al. 2020, ZeRO, stage 3; Zhao et al. 2023).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jax_interp.core.leaves import flatten, unflatten
from jax_interp.training.sharding import Rules, matches

Module = TypeVar("Module")
AXIS = "fsdp"


def gathers() -> bool:
    """Whether weights are gathered here: the compiler chooses the shardings, on a mesh with more than one device along
    `fsdp`."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape.get(AXIS, 1) > 1 and set(mesh.axis_types) == {AxisType.Auto}


def gathered(module: Module, rules: Rules) -> Module:
    """A module whose weights are whole over `fsdp`. Outside such a mesh it is `module`.

    The gradient with respect to a weight is split like the weight, in each layer.

    Args:
      module: any pytree.
      rules: how weights are stored. A leaf without a rule, and a leaf that is not split over `fsdp`, is not changed.
    """
    if not gathers():
        return module
    mesh, flat = jax.sharding.get_abstract_mesh(), flatten(module)
    for name, leaf in flat.items():
        spec = next((spec for pattern, spec in rules if matches(pattern, name)), None)
        if spec is None or leaf.ndim < len(spec):
            continue
        entries = [None] * (leaf.ndim - len(spec)) + list(spec)
        own = [_dividing(entry, size, mesh) for entry, size in zip(entries, leaf.shape, strict=True)]
        if any(AXIS in entry for entry in own):
            leaf = jax.lax.with_sharding_constraint(leaf, _spec(own))  # the gradient leaves the layer in this form
            flat[name] = jax.lax.with_sharding_constraint(leaf, _spec([_without(entry) for entry in own]))
    return unflatten(module, flat)


def kept_for_backward(remat: Callable[..., Any] | bool | None) -> Callable[..., Any] | bool | None:
    """What the backward pass recomputes, as in `run_blocks`: where weights are gathered, it gathers them again."""
    return _all_but_gathered if remat in (None, False) and gathers() else remat


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name != "sharding_constraint"


def _dividing(entry: Any, size: int, mesh: AbstractMesh) -> tuple[str, ...]:
    """The mesh axes of one array axis, or none if they do not divide it: such a weight is stored whole."""
    axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
    axes = tuple(axis for axis in axes if axis in mesh.shape)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def _without(axes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(axis for axis in axes if axis != AXIS)


def _spec(entries: list[tuple[str, ...]]) -> PartitionSpec:
    return PartitionSpec(*(entry or None for entry in entries))
