"""`Objective`: the loss of one intervention on one batch."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.steering.trained.completions import Texts
from jax_interp.steering.trained.likelihood import Steered


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """A batch of one member.

    Args:
      wanted: prompts with the completions that steering should make likely.
      other: the same prompts with the other completions; None if the objective needs none.
      reference: log p(wanted) and log p(other) of the model without steering, in nats; None if there is no other.
      draws: a number from [0, 1) for each row, for what an objective samples.
    """

    wanted: Texts
    other: Texts | None
    reference: Float[Array, "row 2"] | None
    draws: Float[Array, " row"]


class Objective(abc.ABC):
    """A loss. It is a frozen dataclass that is registered in `OBJECTIVES`."""

    pairs: ClassVar[bool] = False
    """Whether it needs the other completions too."""

    @abc.abstractmethod
    def loss(
        self, steered: Steered, batch: Batch, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Any]]:
        """The loss and further metrics.

        Args:
          steered: the model with the member's interventions.
          batch: the batch.
          progress: the fraction of the run that is done.
        """


OBJECTIVES = Registry("objective", Objective)


def check_factors(factors: tuple[float, ...]) -> None:
    """Raise `UserError` unless the factors are finite and above 0."""
    if not factors or not all(np.isfinite(factor) and factor > 0 for factor in factors):
        raise UserError(f"factors={factors}: give at least one factor, each above 0")


def sampled(factors: tuple[float, ...], draws: Float[Array, " row"]) -> Float[Array, " row"]:
    """A factor for each row, uniform over `factors`, from numbers in [0, 1)."""
    index = jnp.minimum((draws * len(factors)).astype(jnp.int32), len(factors) - 1)
    return jnp.asarray(factors, draws.dtype)[index]
