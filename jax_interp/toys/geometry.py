"""The geometry of features in superposition: norms, interference, dimensionality, angles (Elhage et al. 2022).

W is `[feature, hidden]`; its rows are the features' directions. For several instances use `jax.vmap`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

TINY = 1e-12


def feature_norm(W: Float[Array, "feature hidden"]) -> Float[Array, "feature"]:
    """‖W_i‖: about 1 if a feature is represented, 0 if it is not."""
    return jnp.linalg.norm(W, axis=-1)


def superposition(W: Float[Array, "feature hidden"]) -> Float[Array, "feature"]:
    """`Σ_{j≠i} (Ŵ_i · W_j)²`: how much the other features overlap with a feature's direction. 0 if none does."""
    return _squared_overlaps(W) - feature_norm(W) ** 2


def dimensionality(W: Float[Array, "feature hidden"]) -> Float[Array, "feature"]:
    """`D_i = ‖W_i‖² / Σ_j (Ŵ_i · W_j)²`: the fraction of a dimension that a feature has.

    It is 1 for a feature alone, 3/4 in a tetrahedron, 2/3 in a triangle, 1/2 in an antipodal pair, 2/5 in a pentagon,
    3/8 in a square antiprism, and 0 if the feature is not represented. If all hidden dimensions are used evenly, the
    sum over features is the number of hidden dimensions.
    """
    return feature_norm(W) ** 2 / jnp.maximum(_squared_overlaps(W), TINY)


def dimensions_per_feature(W: Float[Array, "feature hidden"]) -> Float[Array, ""]:
    """`D* = m / ‖W‖_F²`: the number of hidden dimensions for each feature that is represented."""
    return jnp.asarray(W.shape[-1], W.dtype) / jnp.maximum(jnp.sum(W**2), TINY)


def gaps(W: Float[Array, "feature 2"]) -> Float[Array, "feature"]:
    """The angles between neighbouring directions in the plane, in degrees. They sum to 360."""
    angle = jnp.sort(jnp.degrees(jnp.arctan2(W[:, 1], W[:, 0])))
    return jnp.diff(angle, append=angle[:1] + 360)


def is_pentagon(W: Float[Array, "5 2"], tolerance: float = 1.0) -> Bool[Array, ""]:
    """Whether five features in the plane form a regular pentagon.

    Args:
      W: five directions.
      tolerance: the largest allowed difference of each gap from 72°, in degrees. All norms must also be above 0.5.
    """
    even = jnp.max(jnp.abs(gaps(W) - 72)) < tolerance
    return even & (jnp.min(feature_norm(W)) > 0.5)


def _squared_overlaps(W: Array) -> Array:
    unit = W / jnp.maximum(feature_norm(W), TINY)[..., None]
    return jnp.sum((unit @ jnp.swapaxes(W, -1, -2)) ** 2, axis=-1)
