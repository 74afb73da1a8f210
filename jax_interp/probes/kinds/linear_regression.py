"""`LinearRegression`: least squares without a penalty."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.probes.kind import KINDS, Kind, Rows
from jax_interp.probes.least_squares import centred, minimum_norm, with_intercept
from jax_interp.probes.regression_probe import RegressionProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class LinearRegression(Kind):
    """The minimum of Σ v (y - x·w - b)², for real targets y. It equals scikit-learn's `LinearRegression`.

    With fewer rows than columns many weights fit all rows exactly, and the probe has the one of smallest norm. It then
    says little about new rows: prefer `Ridge`.

    Args:
      bias: whether there is an intercept.
    """

    target: ClassVar[Literal["binary", "classes", "number"]] = "number"

    bias: bool = True

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> RegressionProbe:
        found = self.fit_grid(data, data.y[None], data.weight[None], strength, key[None])
        return jax.tree.map(lambda a: a[0, 0, 0, 0], found)

    def fit_grid(
        self, data: Rows, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]
    ) -> RegressionProbe:
        x, y = data.x.astype(jnp.float32), y.astype(jnp.float32)

        def of_split(weight: Array) -> tuple[Array, Array]:
            rows = centred(x, y, weight, self.bias)
            return with_intercept(minimum_norm(rows), rows)

        w, b = jax.lax.map(of_split, weight)  # [split, labels, ...]
        spread = lambda a: jnp.broadcast_to(
            jnp.moveaxis(a, 1, 0)[:, :, None, None], (a.shape[1], a.shape[0], 1, len(keys), *a.shape[2:])
        )
        return RegressionProbe(spread(w), spread(b))
