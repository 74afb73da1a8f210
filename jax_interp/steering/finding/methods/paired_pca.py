"""`PairedPCA`: the first principal component of the differences within contrast pairs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

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
class PairedPCA(DirectionMethod):
    """The first principal component of the differences of pairs, with length 1, as the probe `LAT` finds it.

    The differences are not centred: their mean is what the pairs have in common. The sign is that of the mean
    difference. The `pca` aggregator of steering-vectors is this method.
    """

    needs_pairs: ClassVar[bool] = True

    def directions(self, texts: ReadTexts) -> Float[np.ndarray, "site rule d"]:
        return directions_of_probes(pca.LAT(), texts.vectors)
