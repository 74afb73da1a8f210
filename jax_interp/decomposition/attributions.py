"""Attributions between components: which components of one matrix activate those of a later matrix (VPD 2026).

    attr(c' → c) = (∂a_c / ∂a_c')* · a_c' · g_c'          a = x V, g the importance of c'

The star means that no gradient goes through other decomposed matrices, whose components are nodes of their own. Norms,
activation functions and attention patterns stay differentiable. An edge is thus the direct effect of c' on c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.leaves import PyTree
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import is_stacked, layer_address
from jax_interp.surgery import Add, at, depth_of, edit, read, sites


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stop:
    """An edit: the value without its gradient."""

    def __call__(self, x: Array) -> Array:
        return jax.lax.stop_gradient(x)


def matrices_of(model: Decomposed) -> list[str]:
    """The addresses of all decomposed matrices, layers apart."""
    found = []
    for name in model.names:
        found += [layer_address(name, i) for i in (range(depth_of(model.blocks)) if is_stacked(name) else [None])]
    return found


def _linearised(
    model: Decomposed, source: str, target: str, x: PyTree
) -> tuple[Array, Array, Callable[[Array], Array]]:
    """The two matrices' inner activations, and the pullback from the target's to the source's."""
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
    """Raises UserError where the source does not come before the target, which then cannot depend on it."""
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


def local_attributions(
    model: Decomposed,
    source: str,
    target: str,
    importance: Float[Array, "*rows C_source"],
    x: PyTree,
    component: int,
    position: int | None = None,
) -> Float[Array, "*rows C_source"]:
    """What each source component contributes to one target component, row by row.

    Args:
      model: the decomposed model.
      source, target: addresses of decomposed matrices, layers apart (`blocks.0.mlp.down`).
      importance: importances of the source's components.
      x: inputs of the model.
      component: index of the target component.
      position: of the target; None: the sum over positions.

    Returns:
      Attributions of the source's components. Matrices that read the same value (queries and keys of a layer) do not
      affect each other: zeros.

    Raises:
      UserError: a matrix is not decomposed, or the source does not come before the target.
    """
    inner, reached, pull = _linearised(model, source, target, x)
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
    """Attributions over a dataset: `Σ attr / (Σ g_c' · RMS(a_c))`. They cost a backward pass for each target component.

    Args:
      model, source, target, importance, x: as in `local_attributions`.
      absolute: attribute |a_c| instead of a_c.

    Raises:
      UserError: as in `local_attributions`.
    """
    inner, reached, pull = _linearised(model, source, target, x)
    rows = tuple(range(inner.ndim - 1))

    def one(component: Array) -> Array:
        only = jax.nn.one_hot(component, reached.shape[-1], dtype=reached.dtype)
        sign = jnp.sign(reached) if absolute else jnp.ones_like(reached)
        return jnp.sum(pull(sign * only[(None,) * len(rows)]) * inner * importance, axis=rows)

    total = jax.lax.map(one, jnp.arange(reached.shape[-1]))
    size = jnp.sqrt(jnp.mean(reached**2, axis=rows))
    tiny = jnp.asarray(1e-12, total.dtype)
    return total / jnp.maximum(jnp.sum(importance, axis=rows)[None] * size[:, None], tiny)
