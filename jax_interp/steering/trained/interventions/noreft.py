"""NoReFT: LoReFT whose rows need not be orthonormal, as in pyreft (an ablation of arXiv:2404.03592)."""

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
    combined,
    projected,
)
from jax_interp.surgery import ValueTokens


@INTERVENTIONS.register
@dataclasses.dataclass(frozen=True)
class NoReFTConfig(InterventionConfig):
    """NoReFT of one rank. It starts with W₁ = W₂ and b = 0, where it changes nothing; pyreft draws both at random."""

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank={self.rank} must be at least 1")

    def init(self, key: Key[Array, ""], d: int) -> NoReFT:
        rows = jax.random.normal(key, (self.rank, d), jnp.float32) / jnp.sqrt(jnp.float32(d))
        return NoReFT(rows, rows, jnp.zeros(self.rank, jnp.float32))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class NoReFT(Intervention):
    """x + W₂ᵀ(W₁ x + b - W₂ x).

    Args:
      rows: W₂.
      weight: W₁.
      bias: b.
    """

    rows: Float[Array, "rank d"]
    weight: Float[Array, "rank d"]
    bias: Float[Array, " rank"]

    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        target = projected(x, self.weight) + jnp.broadcast_to(self.bias, (*x.shape[:-1], len(self.bias)))
        return combined(target - projected(x, self.rows), self.rows)
