"""`Ridge` and `RidgeClassifier`: least squares with an L2 penalty, equal to scikit-learn's."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.probes.class_weights import balanced_weights
from jax_interp.probes.kind import KINDS, Kind, Rows
from jax_interp.probes.least_squares import centred, ridge, with_intercept
from jax_interp.probes.linear_grid import ClassWeight, check_strengths
from jax_interp.probes.probe import LinearProbe, Probe
from jax_interp.probes.regression_probe import RegressionProbe


@dataclasses.dataclass(frozen=True)
class _Ridge(Kind):
    alpha: tuple[float, ...] = (1.0,)
    bias: bool = True

    def __post_init__(self) -> None:
        check_strengths(type(self).__name__, "alpha", self.alpha)

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.alpha

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> Probe:
        assert strength is not None
        found = self.fit_grid(data, data.y[None], data.weight[None], strength[None], key[None])
        return jax.tree.map(lambda a: a[0, 0, 0, 0], found)

    def solved(self, x: Array, y: Array, weight: Array, alpha: Array, seeds: int) -> tuple[Array, Array]:
        """(weights, intercepts), each with the axes labels, split, strength, seed.

        Args:
          x: the rows.
          y: the targets, `[labels, row]`.
          weight: `[labels, split, row]`; or `[1, split, row]`, and then all labels share a Gram matrix.
          alpha: the strengths.
          seeds: the number of seeds.
        """
        x = x.astype(jnp.float32)

        def of_split(y: Array, weight: Array) -> tuple[Array, Array]:
            rows = centred(x, y, weight, self.bias)
            w, b = with_intercept(ridge(rows, alpha), rows)
            return jnp.moveaxis(w, 1, 0), jnp.moveaxis(b, 1, 0)

        if weight.shape[0] == 1:
            w, b = jax.lax.map(lambda v: of_split(y, v), weight[0])
            w, b = jnp.moveaxis(w, 1, 0), jnp.moveaxis(b, 1, 0)
        else:
            of_labels = lambda of: jax.lax.map(lambda v: of_split(of[0][None], v), of[1])
            w, b = (a[:, :, 0] for a in jax.lax.map(of_labels, (y, weight)))
        spread = lambda a: jnp.broadcast_to(jnp.expand_dims(a, 3), (*a.shape[:3], seeds, *a.shape[3:]))
        return spread(w), spread(b)


@KINDS.register
@dataclasses.dataclass(frozen=True)
class Ridge(_Ridge):
    """The minimum of Σ v (y - x·w - b)² + α‖w‖², for real targets y.

    Args:
      alpha: strengths of the penalty, as in scikit-learn. They share one Gram matrix.
      bias: whether there is an intercept. It is not penalised.
    """

    target: ClassVar[Literal["binary", "classes", "number"]] = "number"

    def fit_grid(
        self, data: Rows, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]
    ) -> RegressionProbe:
        assert strengths is not None
        return RegressionProbe(*self.solved(data.x, y.astype(jnp.float32), weight[None], strengths, len(keys)))


@KINDS.register
@dataclasses.dataclass(frozen=True)
class RidgeClassifier(_Ridge):
    """`Ridge` on the targets -1 (negative class) and +1 (positive class). The threshold is 0.

    Args:
      alpha: strengths of the penalty, as in scikit-learn. They share one Gram matrix.
      bias: whether there is an intercept. It is not penalised.
      class_weight: "balanced": both classes have the same sum of weights. None: each row counts as it is.
    """

    class_weight: ClassWeight = None

    def fit_grid(
        self, data: Rows, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]
    ) -> LinearProbe:
        assert strengths is not None
        weight = weight[None]
        if self.class_weight == "balanced":
            every = (y.shape[0], *weight.shape[1:])
            weight = balanced_weights(
                jnp.broadcast_to(y[:, None, :], every), jnp.broadcast_to(weight, every), 2
            )  # fmt: skip
        sign = 2 * y.astype(jnp.float32) - 1
        w, b = self.solved(data.x, sign, weight, strengths, len(keys))
        return LinearProbe(w, b, jnp.zeros_like(b))
