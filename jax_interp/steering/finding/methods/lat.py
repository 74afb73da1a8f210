"""`LAT`: the first principal component of the differences of random pairs (linear artificial tomography)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.probes.principal_component import first_component
from jax_interp.steering.finding.method import DIRECTION_METHODS, DirectionMethod, ReadTexts, unit


@DIRECTION_METHODS.register
@dataclasses.dataclass(frozen=True)
class LAT(DirectionMethod):
    """The first principal component of the centred differences of random pairs of examples, with length 1.

    Linear artificial tomography with random pairs (Zou et al. 2023, Representation Engineering, arXiv:2310.01405).
    The pairs do not use the labels; labels give the sign. Where the examples are contrast pairs, `PairedPCA` takes the
    differences within them, which removes what both sides share.

    Args:
      seed: the seed of the pairs.
    """

    seed: int = 0

    def directions(self, texts: ReadTexts) -> Float[np.ndarray, "site rule d"]:
        n = len(texts.data)
        if n < 4:
            raise UserError(f"{texts.data.name}: {n} examples are too few for the differences of random pairs: give 4")
        order = np.random.default_rng(self.seed).permutation(n)[: n - n % 2].reshape(-1, 2)
        found = []
        for site, x in texts.vectors.values.items():
            component = np.asarray(_components(jnp.asarray(x[:, order[:, 0]] - x[:, order[:, 1]])), np.float64)
            if not np.isfinite(component).all():
                raise UserError(f"LAT has no direction at {site}: all differences of random pairs are equal")
            found.append(component)
        return texts.towards(unit(np.stack(found)))


@jax.jit
def _components(differences: Float[Array, "rule pair d"]) -> Float[Array, "rule d"]:
    centred = differences - jnp.mean(differences, axis=1, keepdims=True)
    return jax.vmap(first_component, in_axes=(0, None))(centred, jnp.ones(centred.shape[1], centred.dtype))
