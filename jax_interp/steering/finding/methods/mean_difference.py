"""`MeanDifference`: from the mean of one class to the mean of the other."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from jax_interp.steering.finding.method import DIRECTION_METHODS, DirectionMethod, ReadTexts


@DIRECTION_METHODS.register
@dataclasses.dataclass(frozen=True)
class MeanDifference(DirectionMethod):
    """μ₊ - μ₋, with its length. No activation is kept in memory.

    Of contrast pairs, it is the mean of the differences: contrastive activation addition (Rimsky et al. 2023,
    arXiv:2312.06681). Of two classes, it is the weight of the probe `MassMean`.
    """

    needs_rows: ClassVar[bool] = False

    def directions(self, texts: ReadTexts) -> Float[np.ndarray, "site rule d"]:
        return texts.means[:, :, 1] - texts.means[:, :, 0]
