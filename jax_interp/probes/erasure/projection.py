"""`MeanProjection` and `Sal`: orthogonal projections that remove where a concept and the activations covary.

Both have the guarantee of LEACE on the fitted data if they remove the whole column space of Σxz. They change the
activations more than LEACE, because they do not know which directions vary together.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.probes.erasure.eraser import ERASURES, AffineEraser, MomentErasure, affine_eraser
from jax_interp.probes.erasure.leace import LEAST_CORRELATION, column_space, inverse_root
from jax_interp.probes.erasure.moments import Moments, covariances


@ERASURES.register
@dataclasses.dataclass(frozen=True)
class MeanProjection(MomentErasure):
    """Remove the span of the differences between class means: for two classes, the direction μ₊ - μ₋.

    It is `ProjectOut(μ₊ - μ₋)` around the mean (mean projection, Haghighatkhah et al. 2022, arXiv:2212.07742).
    """

    def from_moments(self, moments: Moments) -> AffineEraser:
        found = covariances(moments)
        scale = np.sqrt(np.trace(found.xx))
        basis = column_space(found.xz @ inverse_root(found.zz) / (scale or 1.0), LEAST_CORRELATION)
        return affine_eraser(basis, basis.T, found.mean_x, found.xz.shape[1])


@ERASURES.register
@dataclasses.dataclass(frozen=True)
class Sal(MomentErasure):
    """Remove the first left singular vectors of the cross-covariance Σxz (SAL; Shao, Ziser & Cohen 2022,
    arXiv:2203.07893).

    Args:
      rank: how many. The guarantee holds if it is at least the rank of Σxz: the number of classes less one.
    """

    rank: int = 1

    def __post_init__(self):
        if self.rank < 1:
            raise UserError(f"rank={self.rank} must be at least 1")

    def from_moments(self, moments: Moments) -> AffineEraser:
        found = covariances(moments)
        left, values, _ = np.linalg.svd(found.xz, full_matrices=False)
        kept = left[:, : self.rank][:, values[: self.rank] > LEAST_CORRELATION * np.sqrt(np.trace(found.xx))]
        return affine_eraser(kept, kept.T, found.mean_x, min(self.rank, found.xz.shape[1]))
