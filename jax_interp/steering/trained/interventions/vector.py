"""One vector that is added to every value: x + v. It is the bias-only method, and the SteeringVector of AxBench."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.trained.intervention import (
    INTERVENTIONS,
    Intervention,
    InterventionConfig,
    Read,
    Value,
    vector_removal,
)
from jax_interp.surgery import ValueTokens


@INTERVENTIONS.register
@dataclasses.dataclass(frozen=True)
class VectorConfig(InterventionConfig):
    """A vector that is added (AxBench, arXiv:2501.17148; bias-only tuning)."""

    norm: float = 0.0
    """The norm of the random vector at the start. 0: training starts at the unchanged model. RePS needs a start above
    0, because a vector of norm zero has no direction that it could remove."""

    def __post_init__(self) -> None:
        if not self.norm >= 0:
            raise UserError(f"norm={self.norm} must be at least 0")

    def init(self, key: Key[Array, ""], d: int) -> Vector:
        drawn = jax.random.normal(key, (d,), jnp.float32)
        return Vector(self.norm * drawn / jnp.linalg.norm(drawn))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Vector(Intervention):
    """x + v.

    Args:
      vector: v.
    """

    vector: Float[Array, " d"]

    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        return jnp.broadcast_to(self.vector, x.shape)

    def removal(self, x: Value) -> Value:
        return vector_removal(x, self.vector)

    def direction(self) -> Float[Array, " d"]:
        return self.vector
