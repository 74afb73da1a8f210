"""First-order attributions of the target's outputs to components, and the k largest attributions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.core.leaves import PyTree
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.base import PerMatrix, inner_activations
from jax_interp.decomposition.masks import Mask, masks_from_values
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.surgery import Add, Each, at, edit, read


def attributions(model: Decomposed, rank: int, x: PyTree) -> Float[Array, "batch C"]:
    """Attributions `A_c = Σ_o (Σ_l ⟨∂f_o/∂z_l, P_{c,l} a_l⟩)²` (APD 2025).

    In the target, matrix l has the input a_l and the output z_l. P_{c,l} is the part of matrix l that belongs to
    component c. Gradients and activations are constants, so the result is differentiable in V and U only. This takes
    one forward pass, and one backward pass for each output.

    Args:
      model: the decomposed model.
      rank: the number of neighbouring subcomponents in one component.
      x: a batch.
    """
    inputs, gradients = jax.lax.stop_gradient(_output_gradients(model, x))
    total: Any = 0.0
    for name, a in inner_activations(model, inputs).items():
        U = model.of(name).U
        a, U = a.reshape(*a.shape[:-1], -1, rank), U.reshape(*U.shape[:-2], -1, rank, U.shape[-1])
        # add up what each component writes first: the product with gradients then has C vectors, not C · rank
        if is_stacked(name):
            written = jnp.einsum("l...cm,lcmd->l...cd", a, U)
            total = total + jnp.einsum("ol...d,l...cd->o...c", gradients[name], written)
        else:
            written = jnp.einsum("...cm,cmd->...cd", a, U)
            total = total + jnp.einsum("o...d,...cd->o...c", gradients[name], written)
    return jnp.sum(total**2, axis=0)


def _output_gradients(model: Decomposed, x: PyTree) -> tuple[PerMatrix, PerMatrix]:
    """The input of each matrix, and d output / d (output of the matrix), `[output, *layer, batch, d_out]`.

    Rows are independent, so one backward pass gives the gradients of one output for the whole batch.
    """
    names = [f"{name}.output" for name in model.names]
    output, acts = read(model, *names, *(f"{name}.input" for name in model.names))(x)

    def with_added(deltas: dict[str, Array]) -> Array:
        additions = [at(n, Each(Add(d)) if is_stacked(n) else Add(d)) for n, d in deltas.items()]
        return edit(model, *additions)(x)

    _, pull = jax.vjp(with_added, {name: jnp.zeros_like(acts[name]) for name in names})
    width = output.shape[-1]
    rows = jnp.broadcast_to(
        jnp.expand_dims(jnp.eye(width, dtype=output.dtype), range(1, output.ndim)), (width, *output.shape)
    )
    gradients = jax.vmap(lambda row: pull(row)[0])(rows)
    return (
        {name: acts[f"{name}.input"] for name in model.names},
        {name: gradients[f"{name}.output"] for name in model.names},
    )


def batch_top_k(attributions: Float[Array, "batch C"], k: float) -> Bool[Array, "batch C"]:
    """True for the `int(k · batch)` largest attributions of the whole batch.

    k is the average number for each row and may be a fraction. Attributions that equal the smallest kept attribution
    are kept too. An attribution of 0 is never kept.
    """
    return (attributions >= top_k_threshold(attributions, k)) & (attributions > 0)


def top_k_threshold(attributions: Float[Array, "batch C"], k: float) -> Float[Array, ""]:
    """The smallest of the `int(k · batch)` largest attributions of the batch."""
    count = max(int(k * attributions.shape[0]), 1)
    flat = jax.lax.optimization_barrier(attributions.reshape(-1))  # a fused top-k is slow
    return jax.lax.optimization_barrier(jax.lax.top_k(flat, count)[0])[-1]


def component_masks(model: Decomposed, mask: Float[Array, "batch C"], rank: int) -> dict[str, Mask]:
    """The masks of all matrices, from one mask for each component. Δ is off."""
    wide = jnp.repeat(mask, rank, axis=-1)
    layers = {name: (model.of(name).V.shape[0],) if is_stacked(name) else () for name in model.names}
    return masks_from_values({name: jnp.broadcast_to(wide, (*layers[name], *wide.shape)) for name in model.names})
