"""Terms that make a ReLU code sparse.

L1     mean over rows of Σ f_i w_i       w_i = 1 (rows of norm 1), or the norm of the feature's decoder row
Lp     mean of Σ f_i^p, p falling from 1 in the course of the run
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.forms.dictionary import site_norms
from jax_interp.dictionaries.losses.forward import Forward, pre_code
from jax_interp.dictionaries.losses.term import TERMS, Term, coefficient_only, needs_pre_activations, warmed_up

Weight = Literal["none", "l1_of_norms", "l2_of_norms"]


def feature_weights(forward: Forward, weight: Weight) -> Float[Array, " feature"]:
    """1, or the norm of the decoder row. Where a dictionary writes several values: the sum of the norms at each
    (Lindsey et al. 2024: comparable to the SAEs of each), or the norm of them all together."""
    if weight == "none":
        return jnp.ones((forward.dictionary.n_features,), forward.x.dtype)
    norms = site_norms(forward.dictionary)
    if weight == "l1_of_norms":
        return jnp.sum(norms, axis=1)
    square = jnp.sum(norms * norms, axis=1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, jnp.ones_like(square))), square)


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class L1(Term):
    """λ · mean Σ f_i w_i, λ warmed up over a part of the run. Without weights it needs decoder rows of norm 1 (Bricken
    et al. 2023), or a dictionary escapes by shrinking its latents; with weights rows are free (April 2024 update)."""

    entries_suffice = True
    cross_layer = "sources"
    coefficient: float = 0.01
    weight: Weight = "none"
    warmup: float = 0.05

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        penalty = forward.code.weighted_sum(feature_weights(forward, self.weight)) / forward.rows
        return warmed_up(self.coefficient, forward, self.warmup) * penalty


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class AnnealedLp(Term):
    """λ · c · mean Σ f_i^p: p falls linearly from 1 at `start` of the run to `end_p` at its end, which penalises weak
    latents ever more and strong ones ever less (Karvonen et al. 2024). c, without gradient, holds the penalty at the
    size that Σ f_i of the same batch has; the published code holds it over its last ten steps instead."""

    entries_suffice = True
    cross_layer = "sources"
    coefficient: float = 0.01
    start: float = 0.3
    end_p: float = 0.2
    warmup: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1 or not 0 < self.end_p <= 1:
            raise UserError(
                f"AnnealedLp(start={self.start}, end_p={self.end_p}): from 0 to below 1, and above 0 up to 1"
            )

    def check(self, activation: Activation) -> None:
        needs_pre_activations(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        f = pre_code(forward, self).values
        p = 1 - (1 - self.end_p) * jnp.clip((forward.progress - self.start) / (1 - self.start), 0.0, 1.0)
        on = f > 0
        # The derivative of f^p is infinite at 0: what is off takes no part, and an active latent counts from 1e-6 up.
        powered = jnp.where(on, jnp.exp(p * jnp.log(jnp.where(on, jnp.maximum(f, 1e-6), 1.0))), 0.0)
        penalty, plain = jnp.sum(powered) / forward.rows, jnp.sum(f) / forward.rows
        c = jax.lax.stop_gradient(plain / jnp.maximum(penalty, 1e-12))
        return warmed_up(self.coefficient, forward, self.warmup) * c * penalty
