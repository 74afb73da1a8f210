"""APD's components as the parts that the linearity suite takes away: each spans all matrices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.decomposition.apd.spectrum import spectra
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.linearity.ablatable import Ablatable, OfDecomposition, layers_of, of_decomposition


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class OfComponents:
    """`of` with one mask for the `rank` neighbouring subcomponents of every matrix that are one component."""

    of: OfDecomposition
    rank: int = dataclasses.field(metadata={"static": True})

    def run(self, mask: Float[Array, "batch C"], x: Array) -> Array:
        return self.of.run(self.spread(mask), x)

    def target(self, x: Array) -> Array:
        return self.of.target(x)

    def resampled(self, keep: Float[Array, "batch C"], x: Array, donor: Array) -> Array:
        return self.of.resampled(self.spread(keep), x, donor)

    def spread(self, mask: Float[Array, "batch C"]) -> Float[Array, "batch part"]:
        model = self.of.model
        places = sum(layers_of(model, name) for name in model.names)
        return jnp.tile(jnp.repeat(mask, self.rank, axis=-1), (1, places))


def of_components(model: Decomposed, rank: int, least: float = 0.05) -> Ablatable:
    """The components of a decomposed model, Δ left out of all runs but the target's. A component's rank is the number
    of its singular values, over all matrices, that are at least `least` of the largest that any component has in that
    matrix: none that is trained is zero."""
    values = [one.values for one in spectra(model, rank, model.names).values()]
    ranks = np.sum([(one > least * max(one.max(), 1e-30)).sum(axis=1) for one in values], axis=0)
    whole = of_decomposition(model)
    return Ablatable(OfComponents(whole.of, rank), whole.faithfulness, ranks)
