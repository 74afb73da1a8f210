"""How many components matter: on a row (L0), and on any (alive)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.matrices import row_axes


def l0(importance: PerMatrix, threshold: float | Array = 0.0) -> dict[str, Float[Array, "*layer"]]:
    """The mean over rows of the number of components whose importance is above `threshold`, by matrix."""
    found = {}
    for name, g in importance.items():
        found[name] = jnp.mean(jnp.sum((g > threshold).astype(jnp.float32), axis=-1), axis=row_axes(name, g))
    return found


def alive(importance: PerMatrix, threshold: float | Array = 0.1) -> dict[str, Bool[Array, "*layer C"]]:
    """Which components are above `threshold` at some row."""
    return {name: jnp.any(g > threshold, axis=row_axes(name, g)) for name, g in importance.items()}


def spectrum(importance: PerMatrix) -> dict[str, Float[Array, "*layer C"]]:
    """Mean importances in descending order. Living and dead ones part at a cliff of its logarithm, which says more than
    whether a component ever fired."""
    return {name: -jnp.sort(-jnp.mean(g, axis=row_axes(name, g)), axis=-1) for name, g in importance.items()}
