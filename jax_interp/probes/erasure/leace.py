"""`Leace`: least squares concept erasure. After it, no linear probe does better than a constant on the fitted data.

Belrose et al. 2023 (arXiv:2306.03819), Theorem 4.3:

    r(x) = x - W⁺ P W (x - μ),     W = (Σxx^½)⁺,     P the orthogonal projection onto the column space of W Σxz

Of all affine maps after which x and the concept are uncorrelated, it changes x least, in every norm of the form
xᵀMx at once.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

from jax_interp.core.errors import UserError
from jax_interp.probes.erasure.eraser import ERASURES, AffineEraser, MomentErasure, affine_eraser
from jax_interp.probes.erasure.moments import Covariances, Moments, covariances

LEAST_VARIANCE = 1e-6
"""The least variance that a direction is taken to have, as a share of the largest one, after all columns are scaled to
variance 1. Smaller ones are rounding of float32 products."""
LEAST_CORRELATION = 1e-5
"""Correlations with the concept up to this size count as none."""


@ERASURES.register
@dataclasses.dataclass(frozen=True)
class Leace(MomentErasure):
    """Least squares concept erasure.

    The guarantee on the fitted data does not depend on `shrinkage`: for any positive definite S in place of Σxx, the
    erased activations are uncorrelated with the concept. Shrinkage changes how much else is changed, and how well the
    eraser works on other data if rows are few.

    Args:
      shrinkage: 0: the covariance of the data. A number γ: (1 - γ) Σxx + γ tr(Σxx)/d I. "auto": the optimal linear
        shrinkage towards this multiple of I (Bodnar, Gupta & Parolya 2014, arXiv:1308.2608).
    """

    shrinkage: float | Literal["auto"] = 0.0

    def __post_init__(self):
        if self.shrinkage != "auto" and not 0 <= float(self.shrinkage) <= 1:
            raise UserError(f'shrinkage={self.shrinkage} must be between 0 and 1, or "auto"')

    def from_moments(self, moments: Moments) -> AffineEraser:
        found = covariances(moments)
        scale = np.sqrt(np.diag(found.xx))
        constant = scale <= LEAST_VARIANCE * np.abs(found.mean_x)  # what is left there is rounding of the mean
        scale = np.where(constant | (scale == 0), 1.0, scale)  # a few columns of huge variance must not hide the others
        covariance = np.where(constant[:, None] | constant[None, :], 0.0, self._shrunk(found))
        values, vectors = np.linalg.eigh(covariance / scale[:, None] / scale[None, :])
        root = np.sqrt(np.maximum(values, LEAST_VARIANCE * max(values[-1], 1e-300)))
        whiten, unwhiten = (vectors / root).T / scale[None, :], scale[:, None] * vectors * root
        cross = np.where(constant[:, None], 0.0, found.xz)
        basis = column_space(whiten @ cross @ inverse_root(found.zz), LEAST_CORRELATION)
        return affine_eraser(unwhiten @ basis, basis.T @ whiten, found.mean_x, found.xz.shape[1])

    def _shrunk(self, found: Covariances) -> Float[np.ndarray, "d d"]:
        d = len(found.xx)
        target = np.trace(found.xx) / d * np.eye(d)
        amount = bodnar_shrinkage(found.xx, found.n) if self.shrinkage == "auto" else float(self.shrinkage)
        return (1 - amount) * found.xx + amount * target


def bodnar_shrinkage(covariance: Float[np.ndarray, "d d"], n: float) -> float:
    """The share of the target in the optimal linear shrinkage towards tr(S)/d I, limited to [0, 1].

    β = tr(S)²/n · (‖S‖² - tr(S)²/d)⁻¹ (Bodnar, Gupta & Parolya 2014, for this target)
    """
    d, trace = len(covariance), np.trace(covariance)
    spread = np.sum(covariance**2) - trace**2 / d
    return float(np.clip(trace**2 / n / spread, 0, 1)) if spread > 0 else 1.0


def column_space(a: Float[np.ndarray, "d k"], tolerance: float) -> Float[np.ndarray, "d rank"]:
    """An orthonormal basis of the column space, without singular values up to `tolerance`."""
    left, values, _ = np.linalg.svd(a, full_matrices=False)
    return left[:, values > tolerance]


def inverse_root(covariance: Float[np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    """(Σ^½)⁺ of a small covariance. It makes the singular values of the cross-covariance correlations."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-9 * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
