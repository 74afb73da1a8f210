"""`Inlp`: iterative nullspace projection. Fit a linear classifier, project its direction out, and repeat.

Ravfogel et al. 2020 (arXiv:2004.07667). It has no guarantee after a given number of rounds, and removes one direction
for each class and round.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from jax_interp.core.errors import UserError
from jax_interp.core.logistic import fit_logistic
from jax_interp.probes.erasure.eraser import ERASURES, AffineEraser, Erasure, affine_eraser
from jax_interp.probes.erasure.moments import HIGHEST
from jax_interp.surgery.value_tokens import wide


@ERASURES.register
@dataclasses.dataclass(frozen=True)
class Inlp(Erasure):
    """Iterative nullspace projection with logistic regression.

    The activations are centred first, so that the projection leaves their mean as it is.

    Args:
      rounds: the number of classifiers that are fitted one after another. With several classes, each round has one
        classifier for each class against the rest.
      C: the inverse strength of the L2 penalty of the classifiers.
    """

    rounds: int = 8
    C: float = 1.0

    def __post_init__(self):
        if self.rounds < 1:
            raise UserError(f"rounds={self.rounds} must be at least 1")

    def fit(self, x: Float[ArrayLike, "row d"], z: Float[ArrayLike, "row k"]) -> AffineEraser:
        x, z = wide(jnp.asarray(x)), np.asarray(z)
        if not set(np.unique(z)) <= {0.0, 1.0}:
            raise UserError("Inlp tells classes apart, and the concept is real numbers: use Leace")
        if len(x) < 2 or not bool(jnp.all(jnp.isfinite(x))):
            raise UserError("give at least two rows of finite activations")
        first = z.sum(axis=1) == 0
        of_class = z.T > 0 if z.shape[1] == 1 else np.concatenate([first[None], z.T > 0])
        of_class = of_class[of_class.any(axis=1) & ~of_class.all(axis=1)]
        if not len(of_class):
            raise UserError("all rows have the same label: there is no concept to erase")
        mean = jnp.mean(x, axis=0)
        centred, basis = x - mean[None, :], np.zeros((x.shape[1], 0))
        for _ in range(min(self.rounds, x.shape[1])):
            onto = jnp.asarray(basis, x.dtype)
            read = jnp.matmul(centred, onto, precision=HIGHEST)
            left = centred - jnp.matmul(read, onto.T, precision=HIGHEST)
            rows = jnp.broadcast_to(left, (len(of_class), *left.shape))
            weight = np.asarray(fit_logistic(rows, jnp.asarray(of_class), C=self.C).weight, np.float64)
            basis = _extended(basis, weight)
        return affine_eraser(basis, basis.T, np.asarray(mean), basis.shape[1])


def _extended(basis: Float[np.ndarray, "d rank"], directions: Float[np.ndarray, "k d"]) -> Float[np.ndarray, "d more"]:
    """An orthonormal basis of the span of both. Directions that are nearly in the span already add nothing."""
    for direction in directions:
        length = np.linalg.norm(direction)
        for _ in range(2):  # once more, against rounding
            direction = direction - basis @ (basis.T @ direction)
        if np.linalg.norm(direction) > 1e-4 * length and basis.shape[1] < len(basis):
            basis = np.concatenate([basis, direction[:, None] / np.linalg.norm(direction)], axis=1)
    return basis
