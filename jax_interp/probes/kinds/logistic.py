"""`Logistic`: logistic regression with an L2 penalty, equal to scikit-learn's optimum."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.probes.kind import KINDS, Kind, Rows, Solved
from jax_interp.probes.linear_grid import ClassWeight, check_strengths, fit_grid
from jax_interp.probes.probe import LinearProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class Logistic(Kind):
    """The minimum of C Σ v log(1 + exp(∓score)) + ½‖w‖². The score is the log-odds of the positive class.

    The optimum is unique, so all seeds give the same probe. Geometry of Truth (Marks & Tegmark 2023, arXiv:2310.06824)
    fits it without intercept: `bias=False`, on activations centred for each data set.

    Args:
      C: inverse strengths of the penalty, as in scikit-learn. They are fitted side by side.
      bias: whether there is an intercept. It is not penalised.
      standardise: whether columns are first divided by their deviation in the training rows (and centred, if there is
        an intercept). The weight of the probe is for raw activations.
      class_weight: "balanced": both classes have the same sum of weights. None: each row counts as it is.
    """

    C: tuple[float, ...] = (1.0,)
    bias: bool = True
    standardise: bool = False
    class_weight: ClassWeight = None

    def __post_init__(self) -> None:
        check_strengths("Logistic", "C", self.C)

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.C

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> LinearProbe:
        assert strength is not None
        found = self.fit_grid(data, data.y[None], data.weight[None], strength[None], key[None])
        return jax.tree.map(lambda a: a[0, 0, 0, 0], found.probes)

    def fit_grid(
        self, data: Rows, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]
    ) -> Solved:
        assert strengths is not None
        fit, sizes = fit_grid(
            data.x, y, weight, strengths, classes=2, bias=self.bias, standardise=self.standardise,
            class_weight=self.class_weight,
        )  # fmt: skip
        shape = (*sizes, len(keys))
        spread = lambda a: jnp.broadcast_to(a.reshape(*sizes, 1, *a.shape[1:]), (*shape, *a.shape[1:]))
        weights, bias = spread(fit.weight[:, 0]), spread(fit.bias[:, 0])
        probes = LinearProbe(weights, bias, jnp.zeros_like(bias), log_odds=True)
        return Solved(probes, spread(fit.error), spread(fit.gradient), spread(fit.converged))
