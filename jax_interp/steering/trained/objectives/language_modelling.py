"""Language modelling: the wanted completions become likely under the steered model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.steering.trained.likelihood import Steered
from jax_interp.steering.trained.objectives.objective import OBJECTIVES, Batch, Objective, check_factors, sampled


@OBJECTIVES.register
@dataclasses.dataclass(frozen=True)
class LanguageModelling(Objective):
    """The mean cross-entropy of the tokens of the completions, in nats.

    The penalty of a method (ReFT-r1) is added, with a weight that rises from 0 to 1 during the run.
    """

    factors: tuple[float, ...] = (1.0,)
    """The strengths in training. Each text gets one of them at random."""

    def __post_init__(self) -> None:
        check_factors(self.factors)

    def loss(
        self, steered: Steered, batch: Batch, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        found = steered.likelihood(batch.wanted, sampled(self.factors, batch.draws))
        nats = -jnp.sum(found.log_p) / jnp.sum(found.count)
        return nats + progress * found.penalty, {"nats": nats}
