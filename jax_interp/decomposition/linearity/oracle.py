"""The oracle: the decomposition that is known to be right, for models whose features are known."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.decomposition.components import Components, Decomposed
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.matrices import is_stacked


def oracle_decomposition(
    model: Decomposed, parts: Mapping[str, tuple[Float[Array, "d_in feature"], Float[Array, "feature d_out"]]]
) -> Decomposed | None:
    """Decompose the target into its known features, in the matrices that `model` decomposes.

    Args:
      model: a decomposed model.
      parts: V and U for each address pattern. Component i belongs to feature i. A matrix that no pattern matches is not
        decomposed.

    Returns:
      The decomposed model, or None if no pattern matches a matrix.
    """
    pairs = {}
    for name in model.components:
        found = next((pair for pattern, pair in parts.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if found is not None:
            layers = model.weight(name).shape[:-2]
            pairs[name] = Components(*(jnp.broadcast_to(matrix, (*layers, *matrix.shape)) for matrix in found))
    return Decomposed(model.target, pairs, tuple(pair for pair in model.tied if pair[0] in pairs)) if pairs else None


def oracle_importance(oracle: Decomposed, x: Float[Array, "batch feature"]) -> PerMatrix:
    """The importances of the oracle's components: 1 where the feature of a component is on, 0 elsewhere."""
    on = (x != 0).astype(jnp.float32)
    return {
        name: jnp.broadcast_to(on, (*oracle.of(name).V.shape[:-2], *on.shape)) if is_stacked(name) else on
        for name in oracle.names
    }
