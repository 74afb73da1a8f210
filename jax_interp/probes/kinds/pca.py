"""`PCA` and `LAT`: the first principal component as a probe. Labels only give the sign and the threshold.

`PCA` takes the component of all rows. `LAT` takes that of the differences within contrast pairs (linear artificial
tomography, Zou et al. 2023, Representation Engineering, arXiv:2310.01405).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.probes.class_moments import HIGH, class_means, class_weights, counted_rows
from jax_interp.probes.kind import KINDS, Kind, PairRows, Rows
from jax_interp.probes.principal_component import first_component
from jax_interp.probes.probe import LinearProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class PCA(Kind):
    """The first principal component of the centred rows, of length 1. The threshold is halfway between the classes."""

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> LinearProbe:
        x = counted_rows(data.x, data.weight)
        weight = data.weight.astype(x.dtype)
        mean = jnp.matmul(weight, x, precision=HIGH) / jnp.sum(weight)
        component = first_component(x - mean[None, :], weight)
        return _signed(component, class_means(x, class_weights(data.y, data.weight, x)))


@KINDS.register
@dataclasses.dataclass(frozen=True)
class LAT(Kind):
    """The first principal component of the differences of contrast pairs, of length 1.

    The differences are not centred, so the order within a pair does not matter. (The published code exchanges the two
    sides of random pairs and then centres, which is the same up to the random draw.) The second example of a pair
    counts as one of the other class. The threshold is halfway between the classes.
    """

    takes: ClassVar[Literal["rows", "pairs", "sequences"]] = "pairs"

    def fit(self, data: PairRows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> LinearProbe:
        first, second = (counted_rows(x, data.weight) for x in (data.first, data.second))
        weight = data.weight.astype(first.dtype)
        component = first_component(first - second, weight)
        is_first = (data.y == 1)[:, None]
        sides = jnp.where(is_first, second, first), jnp.where(is_first, first, second)
        means = [jnp.matmul(weight, side, precision=HIGH) / jnp.sum(weight) for side in sides]
        return _signed(component, jnp.stack(means))


def _signed(component: Float[Array, " d"], means: Float[Array, "2 d"]) -> LinearProbe:
    """The probe along a component: positive scores are on the side of the positive class."""
    towards = jnp.dot(component, means[1] - means[0], precision=HIGH)
    weight = jnp.where(towards < 0, -component, component)
    bias = -jnp.dot(weight, (means[0] + means[1]) / 2, precision=HIGH)
    return LinearProbe(weight, bias, jnp.zeros_like(bias))
