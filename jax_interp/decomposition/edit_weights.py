"""Editing a model's weights by its components: a mechanism taken out, or turned up.

A matrix that parts of a model share (`linear1` and `linear2` of a tied TMS, a tied embedding and unembedding) is one
matrix: it is edited under the name of the part that holds it, and all that are called with it change.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.surgery import depth_of
from jax_interp.surgery.select import replace, replace_each


def scale_component(model: Decomposed, name: str, component: int, factor: float, *, layer: int | None = None) -> Any:
    """The target with `W + (factor - 1) V[:, c] U[c, :]` in place of one matrix, for all that are called
    with it: 0 takes the mechanism out."""
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
    """A model with `W + read ⊗ write` in place of one matrix, for all that are called with it; of a stacked entry
    (`blocks.*.mlp.up`) in one `layer`, counted from the end where it is negative. Raises UserError for a layer that
    there is not, and for a part that holds no matrix."""
    which = _layer(target, name, layer)

    def changed(part: Any, amount: Array) -> Any:
        if getattr(part, "weight", None) is None:
            raise UserError(
                f"{name!r} holds no matrix, it is called with another part's: edit that one, which changes both, or "
                "give this one its own first (`untie` of a TMS)"
            )
        weight = part.weight[...] + (amount * jnp.outer(read, write)).astype(part.weight[...].dtype)
        if dataclasses.is_dataclass(part):
            return dataclasses.replace(part, weight=weight)  # type: ignore[type-var]
        copy = jax.tree.map(lambda leaf: leaf, part)
        copy.weight = nnx.Param(weight)
        return copy

    if which is None:
        return replace(target, name, lambda part: changed(part, jnp.ones(())))
    amounts = jax.nn.one_hot(which, depth_of(target.blocks))
    return replace_each(target, name, changed, amounts)


def _one(model: Decomposed, name: str, component: int, layer: int | None) -> tuple[Array, Array]:
    parts, which = model.of(name), _layer(model.target, name, layer)
    if not -parts.C <= component < parts.C:
        raise UserError(f"component {component} of {name!r}: it has {parts.C}")
    V, U = (parts.V, parts.U) if which is None else (parts.V[which], parts.U[which])
    return V[:, component], U[component]


def _layer(target: Any, name: str, layer: int | None) -> int | None:
    """The layer that is meant, counted from 0; None for an entry that is one matrix."""
    if is_stacked(name) != (layer is not None):
        raise UserError(f"{name!r}: give layer= for an entry of all layers, and only for one")
    if layer is None:
        return None
    depth = depth_of(target.blocks)
    if not -depth <= layer < depth:
        raise UserError(f"layer {layer} of {name!r}: it has {depth}, from 0 or, counted from the end, from -1")
    return layer % depth
