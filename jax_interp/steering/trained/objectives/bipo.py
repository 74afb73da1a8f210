"""BiPO: bidirectional preference optimisation of a vector (Cao et al. 2024, arXiv:2406.00045). A baseline of RePS.

    loss = - mean log σ(s β [log p(y_c; s)/p(y_c) - log p(y; s)/p(y)]),     s = 1 or -1 with equal probability

With s = 1 alone it is DPO whose policy is the steered model.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.steering.trained.likelihood import Steered, joined
from jax_interp.steering.trained.objectives.objective import OBJECTIVES, Batch, Objective


@OBJECTIVES.register
@dataclasses.dataclass(frozen=True)
class BiPO(Objective):
    """BiPO on pairs of completions. Strength 1 makes y_c more likely, and strength -1 makes y more likely."""

    beta: float = 0.1
    """β."""
    both: bool = True
    """Whether both directions are trained. False: DPO with strength 1."""

    pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise UserError(f"beta={self.beta} must be above 0")

    def loss(
        self, steered: Steered, batch: Batch, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        if batch.other is None or batch.reference is None:
            raise UserError("BiPO needs pairs of completions: give Questions")
        sign = jnp.where(batch.draws < 0.5, 1.0, -1.0) if self.both else jnp.ones_like(batch.draws)
        found = steered.likelihood(joined(batch.wanted, batch.other), jnp.concatenate([sign, sign]))
        gains = found.log_p - batch.reference.T.reshape(-1)
        wanted, other = jnp.split(gains, 2)
        margin = sign * (wanted - other)
        return -jnp.mean(jax.nn.log_sigmoid(self.beta * margin)), {"preferred": jnp.mean(margin > 0)}
