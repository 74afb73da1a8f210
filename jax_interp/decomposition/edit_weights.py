"""Editing a model's weights by its components: a mechanism taken out, or turned up."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.errors import UserError
from jax_interp.surgery import depth_of
from jax_interp.surgery.select import replace, replace_each


def scale_component(model: Decomposed, name: str, component: int, factor: float, *, layer: int | None = None) -> Any:
    """The target with `W + (factor - 1) V[:, c] U[c, :]` in place of one matrix: 0 takes the mechanism out."""
    V, U = _one(model, name, component, layer)
    return add_rank_one(model.target, name, (factor - 1) * V, U, layer=layer)


def redirect_component(
    model: Decomposed,
    name: str,
    component: int,
    write: Float[Array, " d_out"],
    alpha: float,
    *,
    layer: int | None = None,
) -> Any:
    """The target with `W - V[:, c] (U[c, :] + α u/‖u‖)`: what the component wrote is taken out, and where it fires the
    direction `write` is moved away from with strength α, or towards it where α is negative (VPD 2026 uses 3)."""
    V, U = _one(model, name, component, layer)
    return add_rank_one(model.target, name, -V, U + alpha * write / jnp.linalg.norm(write), layer=layer)


def add_rank_one(
    target: Any, name: str, read: Float[Array, " d_in"], write: Float[Array, " d_out"], *, layer: int | None = None
) -> Any:
    """A model with `W + read ⊗ write` in place of one matrix; of a stacked entry (`blocks.*.mlp.up`) in one `layer`."""

    def changed(part: Any, amount: Array) -> Any:
        weight = part.weight[...] + (amount * jnp.outer(read, write)).astype(part.weight[...].dtype)
        if dataclasses.is_dataclass(part):
            return dataclasses.replace(part, weight=weight)  # type: ignore[type-var]
        copy = jax.tree.map(lambda leaf: leaf, part)
        copy.weight = nnx.Param(weight)
        return copy

    if not is_stacked(name):
        return replace(target, name, lambda part: changed(part, jnp.ones(())))
    amounts = jax.nn.one_hot(layer, depth_of(target.blocks))
    return replace_each(target, name, changed, amounts)


def _one(model: Decomposed, name: str, component: int, layer: int | None) -> tuple[Array, Array]:
    parts = model.of(name)
    if is_stacked(name) != (layer is not None):
        raise UserError(f"{name!r}: give layer= for an entry of all layers, and only for one")
    if not -parts.C <= component < parts.C:
        raise UserError(f"component {component} of {name!r}: it has {parts.C}")
    V, U = (parts.V, parts.U) if layer is None else (parts.V[layer], parts.U[layer])
    return V[:, component], U[component]
