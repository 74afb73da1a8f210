"""LoReFT: the value is moved inside a low-rank subspace (Wu et al. 2024, arXiv:2404.03592, eq. 2)."""

from __future__ import annotations

import dataclasses

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
from jax_interp.steering.trained.orthonormal import orthonormal, random_rows
from jax_interp.surgery import ValueTokens


@INTERVENTIONS.register
@dataclasses.dataclass(frozen=True)
class LoReFTConfig(InterventionConfig):
    """LoReFT of one rank. It starts with W = R and b = 0, where it changes nothing; pyreft draws W at random."""

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank={self.rank} must be at least 1")

    def init(self, key: Key[Array, ""], d: int) -> LoReFT:
        if self.rank > d:
            raise UserError(f"rank={self.rank} is more than the width of the value, {d}")
        rows = random_rows(key, self.rank, d)
        return LoReFT(rows, rows, jnp.zeros(self.rank, jnp.float32))


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LoReFT(Intervention):
    """x + Rᵀ(W x + b - R x).

    Args:
      rows: R. Training keeps its rows orthonormal.
      weight: W.
      bias: b.
    """

    rows: Float[Array, "rank d"]
    weight: Float[Array, "rank d"]
    bias: Float[Array, " rank"]

    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        target = projected(x, self.weight) + jnp.broadcast_to(self.bias, (*x.shape[:-1], len(self.bias)))
        return combined(target - projected(x, self.rows), self.rows)

    def constrained(self) -> LoReFT:
        return dataclasses.replace(self, rows=orthonormal(self.rows))
