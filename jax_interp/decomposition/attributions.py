"""Attributions between components: which components of one matrix activate those of a later matrix (VPD 2026).

    attr(c' → c) = (∂a_c / ∂a_c')* · a_c' · g_c'          a = x V, g the importance of c'

The star means that no gradient goes through other decomposed matrices, because their components are separate nodes of
the graph. Gradients do go through norms, activation functions and attention patterns. An edge is therefore the direct
effect of c' on c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import addresses_of
from jax_interp.surgery import Add, at, edit, read, sites


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Stop:
    """An edit that keeps the value and stops its gradient."""

    def __call__(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)


def matrices_of(model: Decomposed) -> list[str]:
    """The addresses of all decomposed matrices, with one address for each layer."""
    return [address for name in model.names for address in addresses_of(model.target, name)]


def _linearised(
    model: Decomposed, source: str, target: str, x: PyTree
) -> tuple[Array, Array, Callable[[Array], Array]]:
    """The inner activations of source and target, and the pullback from the target's activations to the source's."""
    _check_order(model, source, target, x)
    stops = [at(f"{name}.output", Stop()) for name in matrices_of(model) if name not in (source, target)]
    cut = edit(model, *stops)
    inner = read(model, f"{source}.components", output=False)(x)[f"{source}.components"]

    def target_activations(added: Array) -> Array:
        changed = edit(cut, at(f"{source}.components", Add(added)))
        return read(changed, f"{target}.components")(x)[1][f"{target}.components"]

    reached, pull = jax.vjp(target_activations, jnp.zeros_like(inner))
    return inner, reached, lambda cotangent: pull(cotangent)[0]


def _check_order(model: Decomposed, source: str, target: str, x: PyTree) -> None:
    """Raises UserError unless the source comes before the target. Otherwise the target cannot depend on the source."""
    names = matrices_of(model)
    for name in (source, target):
        if name not in names:
            raise UserError(f"attributions of {name!r}: the decomposed matrices are {', '.join(names)}")
    order = list(sites(model)(x))
    if order.index(f"{source}.components") >= order.index(f"{target}.components"):
        raise UserError(
            f"attributions from {source!r} to {target!r}: the target comes no later than the source, and does not "
            "depend on it. Give the earlier matrix as the source"
        )


def _check_importance(importance: Array, inner: Array, source: str) -> None:
    if importance.shape != inner.shape:
        raise UserError(
            f"importance has shape {importance.shape}: the components of {source!r} on these inputs have {inner.shape}"
        )


def local_attributions(
    model: Decomposed,
    source: str,
    target: str,
    importance: Float[Array, "*rows C_source"],
    x: PyTree,
    component: int,
    position: int | None = None,
) -> Float[Array, "*rows C_source"]:
    """The contribution of each source component to one target component, for each row.

    Args:
      model: the decomposed model.
      source, target: addresses of decomposed matrices, each of one layer (`blocks.0.mlp.down`).
      importance: the importances of the source's components.
      x: the model's inputs.
      component: index of the target component.
      position: the position of the target component; None: the sum over positions.

    Returns:
      Attributions of the source's components. They are zero between matrices that read the same value, such as the
      queries and keys of one layer.

    Raises:
      UserError: a matrix is not decomposed, the source does not come before the target, the component or position does
        not exist, or the importances have another shape.
    """
    inner, reached, pull = _linearised(model, source, target, x)
    _check_importance(importance, inner, source)
    C = reached.shape[-1]
    if not -C <= component < C:
        raise UserError(f"component {component} of {target!r}: it has {C}")
    if position is not None and (reached.ndim < 3 or not -reached.shape[1] <= position < reached.shape[1]):
        has = f"{reached.shape[1]} positions" if reached.ndim > 2 else "no positions"
        raise UserError(f"position {position} of {target!r}: the inputs have {has}")
    chosen = jnp.zeros_like(reached)
    where = (..., component) if position is None else (slice(None), position, component)
    return pull(chosen.at[where].set(1.0)) * inner * importance


def edge_attributions(
    model: Decomposed,
    source: str,
    target: str,
    importance: Float[Array, "*rows C_source"],
    x: PyTree,
    absolute: bool = False,
) -> Float[Array, "C_target C_source"]:
    """Attributions over a dataset: `Σ attr / (Σ g_c' · RMS(a_c))`.

    This takes one backward pass for each target component.

    Args:
      model, source, target, importance, x: as in `local_attributions`.
      absolute: compute the attributions of |a_c| instead of a_c.

    Raises:
      UserError: in the same cases as `local_attributions`.
    """
    inner, reached, pull = _linearised(model, source, target, x)
    _check_importance(importance, inner, source)
    rows = tuple(range(inner.ndim - 1))

    def one(component: Array) -> Array:
        only = jax.nn.one_hot(component, reached.shape[-1], dtype=reached.dtype)
        sign = jnp.sign(reached) if absolute else jnp.ones_like(reached)
        return jnp.sum(pull(sign * only[(None,) * len(rows)]) * inner * importance, axis=rows)

    total = jax.lax.map(one, jnp.arange(reached.shape[-1]))
    size = jnp.sqrt(jnp.mean(reached**2, axis=rows))
    tiny = jnp.asarray(1e-12, total.dtype)
    return total / jnp.maximum(jnp.sum(importance, axis=rows)[None] * size[:, None], tiny)
