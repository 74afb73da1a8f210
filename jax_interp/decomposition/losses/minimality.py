"""Importance minimality: few components are important on each row."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.losses.base import LOSSES, Loss, LossInputs
from jax_interp.decomposition.matrices import row_axes


def annealed(
    start: float, end: float | None, progress: Float[Array, ""] | float, first: float = 0.0, last: float = 1.0
) -> Float[Array, ""]:
    """A value that changes linearly during the run.

    Args:
      start: the value until the fraction `first` of the run.
      end: the value after the fraction `last` of the run; None: the value is always `start`.
      progress: the fraction of the run that is done, from 0 to 1.
      first, last: fractions of the run.
    """
    if end is None:
        return jnp.asarray(start, jnp.float32)
    along = jnp.clip((jnp.asarray(progress, jnp.float32) - first) / max(last - first, 1e-9), 0.0, 1.0)
    return start + (end - start) * along


def sum_over_rows(values: Array, name: str) -> Float[Array, "*layer C"]:
    """The sum over the rows of one matrix's values `[*layer, *rows, C]`."""
    return jnp.sum(values, axis=row_axes(name, values))


def row_count(values: Array, name: str) -> int:
    """The number of rows of one matrix's values `[*layer, *rows, C]`."""
    return math.prod(values.shape[axis] for axis in row_axes(name, values))


def lp_minimality(
    upper: PerMatrix, p: Float[Array, ""] | float, frequency: float = 0.0, eps: float = 1e-12
) -> Float[Array, ""]:
    """`(1/rows) Σ_l Σ_c [s_c + frequency · s_c log2(1 + s_c)]`, with `s_c = Σ_rows (upper + eps)^p`.

    With frequency 0 this is the mean over rows of `Σ_l Σ_c upper^p` (SPD 2025). The frequency term comes from the 2026
    torch code. It depends on the size of the batch.

    Args:
      upper: upper importances.
      p: the exponent.
      frequency: the weight of the frequency term.
      eps: added to the importances, so that the gradient is finite at 0 for p < 1.
    """
    total = jnp.zeros(())
    for name, u in upper.items():
        u = u.astype(jnp.float32) + eps
        traced = not isinstance(p, (int, float))
        s = sum_over_rows(u if not traced and p == 1 else u * u if not traced and p == 2 else u**p, name)
        if frequency:
            s = s * (1 + frequency * jnp.log2(1 + s))
        total = total + jnp.sum(s) / row_count(u, name)
    return total


def smooth_l0(upper: PerMatrix, gamma: Float[Array, ""] | float) -> Float[Array, ""]:
    """The mean over rows of `Σ_l Σ_c g² / (g² + γ²)`."""
    total = jnp.zeros(())
    for name, g in upper.items():
        square = g.astype(jnp.float32) ** 2
        total = total + jnp.sum(square / (square + gamma * gamma)) / row_count(g, name)
    return total


def frequency_penalty(upper: PerMatrix, gamma: Float[Array, ""] | float, reference: int) -> Float[Array, ""]:
    """`Σ_l Σ_c f_c log2(1 + reference · f_c)`, where f_c is the mean over rows of `g² / (g² + γ²)`.

    The value does not depend on the size of the batch."""
    total = jnp.zeros(())
    for name, g in upper.items():
        square = g.astype(jnp.float32) ** 2
        f = sum_over_rows(square / (square + gamma * gamma), name) / row_count(g, name)
        total = total + jnp.sum(f * jnp.log2(1 + reference * f))
    return total


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class ImportanceMinimality(Loss):
    """The loss `lp_minimality` (SPD 2025). Between the fractions `anneal` of the run, p goes from `p` to `p_final`."""

    coefficient: float = 3e-3
    p: float = 1.0
    p_final: float | None = None
    anneal: tuple[float, float] = (0.0, 1.0)
    frequency: float = 0.0
    eps: float = 1e-12

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        p = self.p if self.p_final is None else annealed(self.p, self.p_final, inputs.progress, *self.anneal)
        return lp_minimality(inputs.importance.upper, p, self.frequency, self.eps)


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class SmoothL0(Loss):
    """The loss `smooth_l0` plus `frequency` times `frequency_penalty` (the 2026 JAX code).

    During the run γ changes from `gamma` to `gamma_final`. Unlike Lp with p < 1, this loss has a finite gradient at
    small importances.
    """

    coefficient: float = 8e-4
    gamma: float = 1.0
    gamma_final: float | None = 0.01
    anneal: tuple[float, float] = (0.0, 1.0)
    frequency: float = 0.5
    reference: int = 32_768

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        gamma = annealed(self.gamma, self.gamma_final, inputs.progress, *self.anneal)
        loss = smooth_l0(inputs.importance.upper, gamma)
        if self.frequency:
            loss = loss + self.frequency * frequency_penalty(inputs.importance.upper, gamma, self.reference)
        return loss
