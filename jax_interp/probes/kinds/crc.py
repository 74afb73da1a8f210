"""`CRC`: contrastive representation clustering by the top principal component (Burns et al. 2022, arXiv:2212.03827)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.probes.kind import KINDS, Kind, PairRows
from jax_interp.probes.pair_probe import PairProbe
from jax_interp.probes.pair_sides import PairSides
from jax_interp.probes.principal_component import first_component


@KINDS.register
@dataclasses.dataclass(frozen=True)
class CRC(Kind):
    """The first principal component of the differences of normalised pairs, x̃₁ - x̃₂. Nothing is trained.

    As for `CCS`, the first examples of the pairs need to be of both classes. Labels only choose the sign. The weight
    has length 1, so the score is a projection and not a log-odds.

    Args:
      scale: divide each column of each side by its standard deviation.
    """

    takes: ClassVar[Literal["rows", "pairs", "sequences"]] = "pairs"
    centres_sides: ClassVar[bool] = True

    scale: bool = False

    def fit(self, data: PairRows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> PairProbe:
        sides = PairSides.of(data, scaled=self.scale)
        w = first_component(sides.values[0] - sides.values[1], sides.weight)
        return sides.probe(w, jnp.zeros((), w.dtype), data)
