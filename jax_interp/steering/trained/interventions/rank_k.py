"""A change of rank k: an affine function of the value, as NodiReFT in pyreft and as LoRA on the residual stream."""

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
class RankKConfig(InterventionConfig):
    """A change of rank k. It starts with W₁ = 0 and b = 0, where it changes nothing; pyreft draws W₁ at random."""

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank={self.rank} must be at least 1")

    def init(self, key: Key[Array, ""], d: int) -> RankK:
        rows = jax.random.normal(key, (self.rank, d), jnp.float32) / jnp.sqrt(jnp.float32(d))
        return RankK(rows, jnp.zeros((self.rank, d), jnp.float32), jnp.zeros(self.rank, jnp.float32))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RankK(Intervention):
    """x + W₂ᵀ(W₁ x + b).

    Args:
      rows: W₂, the directions that are added.
      weight: W₁, which reads their amounts.
      bias: b.
    """

    rows: Float[Array, "rank d"]
    weight: Float[Array, "rank d"]
    bias: Float[Array, " rank"]

    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        amount = projected(x, self.weight) + jnp.broadcast_to(self.bias, (*x.shape[:-1], len(self.bias)))
        return combined(amount, self.rows)
