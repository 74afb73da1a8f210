"""Loss terms for JumpReLU dictionaries.

L0              λ mean Σ H(pre_i - θ_i)                     Rajamanoharan et al. 2024, arXiv:2407.14435
TargetL0        λ (mean Σ H(pre_i - θ_i) / target - 1)²     appendix of the same paper; used by dictionary_learning
Tanh            λ mean Σ tanh(c f_i ‖d_i‖)                  Anthropic, January 2025
PreActivation   λ mean Σ max(θ_i - pre_i, 0) ‖d_i‖          Anthropic, January 2025; revives latents that never fire
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.activations.jumprelu import Jump, step
from jax_interp.dictionaries.losses.forward import Forward, dense_code, pre_code
from jax_interp.dictionaries.losses.sparsity import feature_weights
from jax_interp.dictionaries.losses.term import (
    TERMS,
    Term,
    coefficient_only,
    needs_pre_activations,
    needs_thresholds,
    warmed_up,
)


def _jump(forward: Forward, term: Term) -> Jump:
    """The activation of the dictionary, checked to have `threshold` [feature] and `bandwidth`."""
    needs_thresholds(term, forward.dictionary.activation)
    return cast("Jump", forward.dictionary.activation)


def mean_l0(forward: Forward, term: Term) -> Float[Array, ""]:
    """The mean number of latents on. Its gradient reaches only the thresholds."""
    activation = _jump(forward, term)
    code = pre_code(forward, term)
    threshold = jnp.broadcast_to(code.gather(activation.threshold), code.pre.shape).astype(code.pre.dtype)
    on: Any = step(code.pre, threshold, activation.bandwidth)
    return jnp.sum(on) / forward.rows


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class L0(Term):
    """`coefficient` · the mean number of latents on. Its gradient reaches only the thresholds."""

    entries_suffice = True
    cross_layer = "sources"
    coefficient: float = 1e-3
    warmup: float = 0.1

    def check(self, activation: Activation) -> None:
        needs_thresholds(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        return warmed_up(self.coefficient, forward, self.warmup) * mean_l0(forward, self)


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class TargetL0(Term):
    """`coefficient` · (L0 / `target` - 1)². The target sets the number of latents, so you need not search for a
    coefficient."""

    entries_suffice = True
    cross_layer = "sources"
    coefficient: float = 1.0
    target: float = 32.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        if not self.target > 0:
            raise UserError(f"TargetL0(target={self.target}): the target must be above 0")

    def check(self, activation: Activation) -> None:
        needs_thresholds(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        excess = mean_l0(forward, self) / self.target - 1
        return warmed_up(self.coefficient, forward, self.warmup) * excess * excess


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class Tanh(Term):
    """`coefficient` · mean Σ tanh(`scale` · f_i ‖d_i‖). It is close to an L0 for strong latents and to an L1 for weak
    ones. Its gradient also reaches the encoder."""

    entries_suffice = True
    cross_layer = "sources"
    coefficient: float = 1e-3
    scale: float = 4.0
    warmup: float = 1.0

    def check(self, activation: Activation) -> None:
        needs_pre_activations(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        code = pre_code(forward, self)
        f = code.values * code.gather(feature_weights(forward, "l2_of_norms"))
        return warmed_up(self.coefficient, forward, self.warmup) * jnp.sum(jnp.tanh(self.scale * f)) / forward.rows


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class PreActivation(Term):
    """`coefficient` · mean Σ max(θ_i - pre_i, 0) ‖d_i‖, for latents that get no other gradient.

    The published coefficient is 3e-6 for an SSE, which is 3e-6 / V for an FVU. The default is about that for values
    with a width of some hundreds. The exact size matters little: if this is the only gradient, Adam uses only its sign.
    """

    cross_layer = "sources"
    coefficient: float = 1e-8

    def check(self, activation: Activation) -> None:
        needs_thresholds(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        short = jax.nn.relu(_jump(forward, self).threshold[None, :] - dense_code(forward, self).pre)
        weighted = jnp.sum(jnp.sum(short, axis=0) * feature_weights(forward, "l2_of_norms"))
        return self.coefficient * weighted / forward.rows
