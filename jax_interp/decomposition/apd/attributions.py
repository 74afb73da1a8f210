"""First-order attributions of a target's outputs to components, and the components that are kept for them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.inputs import PerMatrix, inner
from jax_interp.decomposition.masks import Mask, given
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.surgery import Add, Each, at, edit, read


def attributions(model: Decomposed, rank: int, x: Any) -> Float[Array, "batch C"]:
    """`A_c = Σ_o (Σ_l ⟨∂f_o/∂z_l, P_{c,l} a_l⟩)²`, with a_l what matrix l reads in the target and z_l what it puts out.

    Components of rank `rank`. Gradients and activations are the target's and constants; what is returned can be
    differentiated with respect to V and U. One forward pass and one backward for each output.
    """
    inputs, slopes = jax.lax.stop_gradient(_slopes(model, x))
    total: Any = 0.0
    for name, a in inner(model, inputs).items():
        U = model.of(name).U
        a, U = a.reshape(*a.shape[:-1], -1, rank), U.reshape(*U.shape[:-2], -1, rank, U.shape[-1])
        # what a component writes comes first: each output's slope then meets C vectors, and not C · rank
        if is_stacked(name):
            written = jnp.einsum("l...cm,lcmd->l...cd", a, U)
            total = total + jnp.einsum("ol...d,l...cd->o...c", slopes[name], written)
        else:
            written = jnp.einsum("...cm,cmd->...cd", a, U)
            total = total + jnp.einsum("o...d,...cd->o...c", slopes[name], written)
    return jnp.sum(total**2, axis=0)


def _slopes(model: Decomposed, x: Any) -> tuple[PerMatrix, PerMatrix]:
    """What each matrix reads, and d output / d (its output) `[output, *layer, batch, d_out]`. Rows are independent, so
    one backward pass serves a whole batch for one output."""
    names = [f"{name}.output" for name in model.names]
    output, acts = read(model, *names, *(f"{name}.input" for name in model.names))(x)

    def moved(deltas: dict[str, Array]) -> Array:
        put = [at(n, Each(Add(d)) if is_stacked(n) else Add(d)) for n, d in deltas.items()]
        return edit(model, *put)(x)

    _, pull = jax.vjp(moved, {name: jnp.zeros_like(acts[name]) for name in names})
    width = output.shape[-1]
    rows = jnp.broadcast_to(
        jnp.expand_dims(jnp.eye(width, dtype=output.dtype), range(1, output.ndim)), (width, *output.shape)
    )
    slopes = jax.vmap(lambda row: pull(row)[0])(rows)
    return (
        {name: acts[f"{name}.input"] for name in model.names},
        {name: slopes[f"{name}.output"] for name in model.names},
    )


def batch_top_k(attributions: Float[Array, "batch C"], k: float) -> Bool[Array, "batch C"]:
    """The `int(k · batch)` largest of the whole batch: k a row on average, and k may be a fraction. Those equal to the
    least of them are kept too; a component that a row attributes nothing to is not, however few others there are."""
    return (attributions >= least_kept(attributions, k)) & (attributions > 0)


def least_kept(attributions: Float[Array, "batch C"], k: float) -> Float[Array, ""]:
    """The smallest of the `int(k · batch)` largest."""
    count = max(int(k * attributions.shape[0]), 1)
    flat = jax.lax.optimization_barrier(attributions.reshape(-1))  # fused with its neighbours a top-k is slow
    return jax.lax.optimization_barrier(jax.lax.top_k(flat, count)[0])[-1]


def component_masks(model: Decomposed, mask: Float[Array, "batch C"], rank: int) -> dict[str, Mask]:
    """Masks of all matrices for those of components; Δ is left out."""
    wide = jnp.repeat(mask, rank, axis=-1)
    layers = {name: (model.of(name).V.shape[0],) if is_stacked(name) else () for name in model.names}
    return given({name: jnp.broadcast_to(wide, (*layers[name], *wide.shape)) for name in model.names})
