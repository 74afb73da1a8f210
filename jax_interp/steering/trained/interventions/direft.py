"""DiReFT: LoReFT without the subtraction of R x, so that it adds a value of a low-rank subspace (arXiv:2404.03592)."""

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
class DiReFTConfig(InterventionConfig):
    """DiReFT of one rank, with orthonormal R as in pyreft. It starts with W = 0 and b = 0, where it changes nothing."""

    rank: int = 4

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank={self.rank} must be at least 1")

    def init(self, key: Key[Array, ""], d: int) -> DiReFT:
        if self.rank > d:
            raise UserError(f"rank={self.rank} is more than the width of the value, {d}")
        zeros = jnp.zeros((self.rank, d), jnp.float32)
        return DiReFT(random_rows(key, self.rank, d), zeros, zeros[:, 0])


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class DiReFT(Intervention):
    """x + Rᵀ(W x + b).

    Args:
      rows: R. Training keeps its rows orthonormal.
      weight: W.
      bias: b.
    """

    rows: Float[Array, "rank d"]
    weight: Float[Array, "rank d"]
    bias: Float[Array, " rank"]

    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        amount = projected(x, self.weight) + jnp.broadcast_to(self.bias, (*x.shape[:-1], len(self.bias)))
        return combined(amount, self.rows)

    def constrained(self) -> DiReFT:
        return dataclasses.replace(self, rows=orthonormal(self.rows))
