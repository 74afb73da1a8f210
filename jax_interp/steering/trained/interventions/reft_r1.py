"""ReFT-r1: one unit vector that detects a concept and steers towards it (Wu et al. 2025, AxBench, arXiv:2501.17148).

latents    a = ReLU(x · w)                                   the detector, one number for each token
training   x + mean(top k of a) w                            k tokens of the same text
loss       language modelling + λ t/T · mean of the other a  the latents that are not among the top k
use        x + strength · m · w                              m: the largest latent on the training texts
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.steering.trained.intervention import (
    INTERVENTIONS,
    Intervention,
    InterventionConfig,
    Read,
    Value,
    along,
    vector_removal,
)
from jax_interp.surgery import ValueTokens
from jax_interp.surgery.taps import static


@INTERVENTIONS.register
@dataclasses.dataclass(frozen=True)
class ReFTr1Config(InterventionConfig):
    """ReFT-r1. `top` and `sparsity` are those of AxBench's configs.

    AxBench starts with the same vector in every run, the normalised vector of ones. Here the start is random, so that
    seeds differ. Train it on texts with the concept and on texts without it.
    """

    top: int = 8
    """k, the number of latents that are averaged."""
    sparsity: float = 0.005
    """λ. The weight of the penalty rises from 0 to λ during the run."""

    def __post_init__(self) -> None:
        if self.top < 1 or not self.sparsity >= 0:
            raise UserError(f"top={self.top} must be at least 1, and sparsity={self.sparsity} at least 0")

    def init(self, key: Key[Array, ""], d: int) -> ReFTr1:
        drawn = jax.random.normal(key, (d,), jnp.float32)
        return ReFTr1(drawn / jnp.linalg.norm(drawn), top=self.top, sparsity=self.sparsity)


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ReFTr1(Intervention):
    """The direction of ReFT-r1.

    Args:
      unit: w. Training keeps its norm at 1.
      largest: m, the largest latent on the training texts. None during training.
      top: k.
      sparsity: λ.
    """

    unit: Float[Array, " d"]
    largest: Float[Array, ""] | None = None
    top: int = static(default=8)
    sparsity: float = static(default=0.005)

    penalised: ClassVar[bool] = True
    detects: ClassVar[bool] = True

    def change(self, x: Value, tokens: ValueTokens, read: Read) -> Value:
        if self.largest is not None:
            return jnp.broadcast_to(self.largest * self.unit, x.shape)
        if tokens.positions.first_slot is not None:
            raise UserError("a ReFTr1 without `largest` needs whole texts: give it the largest latent, `calibrated`")
        read = tokens.positions.real if read is None else read
        latents = self.latents(x) if read is None else jnp.where(read, self.latents(x), 0.0)
        mean = jnp.mean(self._top(latents), axis=-1)
        return jnp.broadcast_to(mean[:, None, None] * self.unit[None, None, :], x.shape)

    def removal(self, x: Value) -> Value:
        return vector_removal(x, self.unit)

    def constrained(self) -> ReFTr1:
        return dataclasses.replace(self, unit=self.unit / jnp.linalg.norm(self.unit))

    def direction(self) -> Float[Array, " d"] | None:
        return None if self.largest is None else self.largest * self.unit

    def latents(self, x: Value) -> Float[Array, "batch pos"]:
        return jax.nn.relu(along(x, self.unit))

    def penalty(self, x: Value, read: Bool[Array, "batch pos"]) -> Float[Array, ""]:
        latents = jnp.where(read, self.latents(x), 0.0)
        others = jnp.sum(latents, axis=-1) - jnp.sum(self._top(latents), axis=-1)
        count = jnp.maximum(jnp.sum(read, axis=-1), 1).astype(x.dtype)
        return jnp.asarray(self.sparsity, x.dtype) * jnp.mean(others / count)

    def calibrated(self, largest: Float[Array, ""]) -> ReFTr1:
        return dataclasses.replace(self, largest=largest)

    def _top(self, latents: Float[Array, "batch pos"]) -> Float[Array, "batch k"]:
        return jax.lax.top_k(latents, min(self.top, latents.shape[-1]))[0]
