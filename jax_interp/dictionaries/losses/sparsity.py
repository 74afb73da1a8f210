"""Loss terms that make a ReLU code sparse.

L1           mean over rows of Σ f_i w_i       w_i = 1, or the norm of the feature's decoder row
AnnealedLp   mean over rows of Σ f_i^p         p falls from 1 during the run
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
    """The weight of each feature in a penalty: 1 ("none"), or the norm of its decoder row.

    If a dictionary writes several values, "l1_of_norms" is the sum of the norms for the values (Lindsey et al. 2024:
    comparable to one SAE per value), and "l2_of_norms" is the norm of the whole row.
    """
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
    """`coefficient` · mean Σ f_i w_i.

    Without weights, decoder rows must have norm 1 (Bricken et al. 2023). Otherwise the penalty can be made small by
    shrinking latents and enlarging rows. With weights, rows may have any norm (Anthropic, April 2024 update).
    """

    entries_suffice = True
    cross_layer = "sources"
    coefficient: float = 0.01
    weight: Weight = "none"
    """w_i: 1, or the norm of the feature's decoder row (`feature_weights`)."""
    warmup: float = 0.05
    """The part of the run in which the coefficient rises from 0."""

    def check(self, activation: Activation) -> None:
        if activation.signed:
            raise UserError(
                f"L1 penalises the sum of latents, but latents of {type(activation).__name__} can be negative: leave "
                "out L1, as in loss=(Reconstruction(), AuxK())"
            )

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        self.check(forward.dictionary.activation)
        penalty = forward.code.weighted_sum(feature_weights(forward, self.weight)) / forward.rows
        return warmed_up(self.coefficient, forward, self.warmup) * penalty


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class AnnealedLp(Term):
    """`coefficient` · c · mean Σ f_i^p (Karvonen et al. 2024).

    p falls linearly from 1 to `end_p`. Weak latents are penalised more and more, and strong latents less and less. The
    factor c makes the penalty equal to mean Σ f_i of the same batch; it gets no gradient. The published code computes c
    from the last ten steps.
    """

    entries_suffice = True
    cross_layer = "sources"
    coefficient: float = 0.01
    start: float = 0.3
    """The fraction of the run after which p begins to fall."""
    end_p: float = 0.2
    """p at the end of the run."""
    warmup: float = 0.05
    """The part of the run in which the coefficient rises from 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1 or not 0 < self.end_p <= 1:
            raise UserError(
                f"AnnealedLp(start={self.start}, end_p={self.end_p}): start must be at least 0 and below 1, "
                "end_p above 0 and at most 1"
            )

    def check(self, activation: Activation) -> None:
        needs_pre_activations(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        f = pre_code(forward, self).values
        p = 1 - (1 - self.end_p) * jnp.clip((forward.progress - self.start) / (1 - self.start), 0.0, 1.0)
        on = f > 0
        # The derivative of f^p is infinite at 0. Latents that are off are left out, and others count as at least 1e-6.
        powered = jnp.where(on, jnp.exp(p * jnp.log(jnp.where(on, jnp.maximum(f, 1e-6), 1.0))), 0.0)
        penalty, plain = jnp.sum(powered) / forward.rows, jnp.sum(f) / forward.rows
        c = jax.lax.stop_gradient(plain / jnp.maximum(penalty, 1e-12))
        return warmed_up(self.coefficient, forward, self.warmup) * c * penalty
