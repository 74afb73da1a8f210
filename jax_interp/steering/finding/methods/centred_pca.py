"""`CentredPCA`: the first principal component of all examples."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from jax_interp.probes.kinds import pca
from jax_interp.steering.finding.method import (
    DIRECTION_METHODS,
    DirectionMethod,
    ReadTexts,
    directions_of_probes,
)


@DIRECTION_METHODS.register
@dataclasses.dataclass(frozen=True)
class CentredPCA(DirectionMethod):
    """The first principal component of the centred examples, with length 1, as the probe `PCA` finds it.

    It is the direction of the largest variance, which need not be that of the classes. Labels only give the sign.
    """

    def directions(self, texts: ReadTexts) -> Float[np.ndarray, "site rule d"]:
        return directions_of_probes(pca.PCA(), texts.vectors)
