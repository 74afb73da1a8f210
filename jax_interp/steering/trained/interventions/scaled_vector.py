"""A unit vector with a learned scale: x + a u, ‖u‖ = 1. Direction and size have separate parameters."""

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
class ScaledVectorConfig(InterventionConfig):
    """A random unit vector and its scale at the start."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UserError(f"scale={self.scale} must be above 0: at 0 the direction has no gradient")

    def init(self, key: Key[Array, ""], d: int) -> ScaledVector:
        drawn = jax.random.normal(key, (d,), jnp.float32)
        return ScaledVector(drawn / jnp.linalg.norm(drawn), jnp.asarray(self.scale, jnp.float32))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ScaledVector(Intervention):
    """x + a u.

    Args:
      unit: u. Training keeps its norm at 1.
      scale: a.
    """

    unit: Float[Array, " d"]
    scale: Float[Array, ""]

    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        return jnp.broadcast_to(self.scale * self.unit, x.shape)

    def removal(self, x: Value) -> Value:
        return vector_removal(x, self.scale * self.unit)

    def constrained(self) -> ScaledVector:
        return ScaledVector(self.unit / jnp.linalg.norm(self.unit), self.scale)

    def direction(self) -> Float[Array, " d"]:
        return self.scale * self.unit
