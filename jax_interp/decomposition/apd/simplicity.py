"""Simplicity: the components that are in use have small ranks."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.matrices import is_stacked


def schatten(
    model: Decomposed, mask: Float[Array, "batch C"], rank: int, p: float, eps: float = 1e-16
) -> Float[Array, ""]:
    """`(1/N)(1/B) Σ_l Σ_{b,c,m} mask_{b,c} (S_A S_B + eps)^{p/2}`, with S_A and S_B the squared norms of the m-th
    column of A and row of B: the p-th power of the Schatten p-norm where those are singular vectors. N counts the
    decomposed weights.
    """
    total: Any = 0.0
    weights = 0
    for name in model.names:
        V, U = model.of(name).V, model.of(name).U
        size = jnp.sum(V * V, axis=-2) * jnp.sum(U * U, axis=-1)
        power = (size + eps) ** (p / 2)
        power = jnp.sum(power.reshape(*power.shape[:-1], -1, rank), axis=-1)
        total = total + (jnp.sum(power, axis=0) if is_stacked(name) else power)
        weights += model.weight(name).size
    return jnp.sum(jnp.mean(mask, axis=0) * total) / weights


def lp_attribution(attributions: Float[Array, "batch C"], outputs: int, p: float, eps: float = 1e-16) -> Array:
    """`mean_b Σ_c (|A_c| / outputs + eps)^{p/2}`: minimality without a top-k."""
    return jnp.mean(jnp.sum((jnp.abs(attributions) / outputs + eps) ** (p / 2), axis=-1))
