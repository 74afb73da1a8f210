"""Edit a model's weights by its components: remove a mechanism, scale it, or redirect what it writes.

Several parts of a model can share one matrix (`linear1` and `linear2` of a tied TMS, a tied embedding and unembedding).
Edit such a matrix under the name of the part that holds it. All parts that share the matrix change.
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
from jax_interp.surgery.contract import Model
from jax_interp.surgery.select import replace, replace_each


def scale_component(model: Decomposed, name: str, component: int, factor: float, *, layer: int | None = None) -> Model:
    """The target with one component scaled in its weights: `W + (factor - 1) V[:, c] U[c, :]`.

    Args:
      model: the decomposed model.
      name: the entry of the matrix.
      component: the index of the component.
      factor: 0 removes the component, 2 doubles it.
      layer: the layer, for a stacked entry only. A negative number counts from the end.

    Raises:
      UserError: the component or layer does not exist, or the part holds no matrix.

    Example:
        without = scale_component(trained.model, "blocks.*.mlp.up", 5, 0.0, layer=2)
    """
    V, U = _vectors(model, name, component, layer)
    return add_rank_one(model.target, name, (factor - 1) * V, U, layer=layer)


def redirect_component(
    model: Decomposed,
    name: str,
    component: int,
    write: Float[Array, " d_out"],
    alpha: float,
    *,
    layer: int | None = None,
) -> Model:
    """The target with `W - V[:, c] (U[c, :] + α u/‖u‖)`: the component no longer writes U[c] but -α u/‖u‖ (VPD 2026).

    Args:
      model: the decomposed model.
      name: the entry of the matrix.
      component: the index of the component.
      write: the direction u.
      alpha: the strength α. A negative value writes in the direction of u. VPD uses 3.
      layer: the layer, for a stacked entry only. A negative number counts from the end.

    Raises:
      UserError: in the same cases as `scale_component`.
    """
    V, U = _vectors(model, name, component, layer)
    return add_rank_one(model.target, name, -V, U + alpha * write / jnp.linalg.norm(write), layer=layer)


def add_rank_one(
    target: Model, name: str, read: Float[Array, " d_in"], write: Float[Array, " d_out"], *, layer: int | None = None
) -> Model:
    """The model with one matrix W replaced by `W + read ⊗ write`.

    Args:
      target: the model.
      name: the entry of the matrix (`linear1`, `blocks.*.mlp.up`).
      read, write: the two vectors.
      layer: the layer, for a stacked entry only. A negative number counts from the end.

    Raises:
      UserError: the layer does not exist, or the part holds no matrix.
    """
    index = _layer(target, name, layer)

    def changed(part: Any, amount: Array) -> Any:
        if getattr(part, "weight", None) is None:
            raise UserError(
                f"{name!r} holds no matrix, it uses the matrix of another part. Edit the other part, which changes "
                f"both; or first give {name!r} its own matrix (`untie` for a TMS)"
            )
        weight = part.weight[...] + (amount * jnp.outer(read, write)).astype(part.weight[...].dtype)
        if dataclasses.is_dataclass(part):
            return dataclasses.replace(part, weight=weight)  # type: ignore[type-var]
        copy = jax.tree.map(lambda leaf: leaf, part)
        copy.weight = nnx.Param(weight)
        return copy

    model: Any = target
    if index is None:
        return replace(model, name, lambda part: changed(part, jnp.ones(())))
    amounts = jax.nn.one_hot(index, depth_of(target))
    return replace_each(model, name, changed, amounts)


def _vectors(model: Decomposed, name: str, component: int, layer: int | None) -> tuple[Array, Array]:
    parts, index = model.of(name), _layer(model.target, name, layer)
    if not -parts.C <= component < parts.C:
        raise UserError(f"component {component} of {name!r}: it has {parts.C}")
    V, U = (parts.V, parts.U) if index is None else (parts.V[index], parts.U[index])
    return V[:, component], U[component]


def _layer(target: Model, name: str, layer: int | None) -> int | None:
    """The layer, counted from 0; None for an entry that is one matrix."""
    if is_stacked(name) != (layer is not None):
        raise UserError(f"{name!r}: give layer= for an entry of all layers (blocks.*...), and for no other entry")
    if layer is None:
        return None
    depth = depth_of(target)
    if not -depth <= layer < depth:
        raise UserError(f"layer {layer} of {name!r}: it has {depth}, from 0 or, counted from the end, from -1")
    return layer % depth
