"""`Softmax`: multi-class logistic regression with an L2 penalty, equal to scikit-learn's optimum."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.probes.kind import KINDS, Kind, Rows, Solved
from jax_interp.probes.linear_grid import ClassWeight, check_strengths, fit_grid
from jax_interp.probes.multiclass_probe import MulticlassProbe


@KINDS.register
@dataclasses.dataclass(frozen=True)
class Softmax(Kind):
    """The minimum of C Σ v (-log softmax(Wx + b)[class]) + ½‖W‖².

    Two classes give the log-odds of `Logistic` with twice the C, as in scikit-learn's multinomial objective: each class
    has half the weight, and is penalised.

    Args:
      C: inverse strengths of the penalty. They are fitted side by side.
      bias: whether there is an intercept for each class. It is not penalised.
      standardise: as in `Logistic`.
      class_weight: "balanced": all classes have the same sum of weights. None: each row counts as it is.
    """

    target: ClassVar[Literal["binary", "classes", "number"]] = "classes"

    C: tuple[float, ...] = (1.0,)
    bias: bool = True
    standardise: bool = False
    class_weight: ClassWeight = None

    def __post_init__(self) -> None:
        check_strengths("Softmax", "C", self.C)

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.C

    def fit(self, data: Rows, strength: Float[Array, ""] | None, key: Key[Array, ""]) -> MulticlassProbe:
        assert strength is not None
        found = self.fit_grid(data, data.y[None], data.weight[None], strength[None], key[None])
        return jax.tree.map(lambda a: a[0, 0, 0, 0], found.probes)

    def fit_grid(
        self, data: Rows, y: Array, weight: Array, strengths: Array | None, keys: Key[Array, " seed"]
    ) -> Solved:
        assert strengths is not None
        fit, sizes = fit_grid(
            data.x, y, weight, strengths, classes=data.classes, bias=self.bias, standardise=self.standardise,
            class_weight=self.class_weight,
        )  # fmt: skip
        shape = (*sizes, len(keys))
        spread = lambda a: jnp.broadcast_to(a.reshape(*sizes, 1, *a.shape[1:]), (*shape, *a.shape[1:]))
        probes = MulticlassProbe(spread(fit.weight), spread(fit.bias))
        return Solved(probes, spread(fit.error), spread(fit.gradient), spread(fit.converged))
