"""Terms that train the gate of a Gated dictionary (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 8).

GateL1          λ mean Σ max(π_i, 0)
FrozenDecoder   the squared error of the reconstruction from max(π, 0). The decoder, its bias and the skip get no
                gradient. The gate learns to detect features, and cannot make the decoder shrink them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.dictionaries.activations.activation import Activation
from jax_interp.dictionaries.codes import DenseCode, EntryCode
from jax_interp.dictionaries.losses.forward import Forward, pre_code
from jax_interp.dictionaries.losses.reconstruction import Kind, squared_error_loss
from jax_interp.dictionaries.losses.term import TERMS, Term, coefficient_only, needs_gate, warmed_up


def _gate(forward: Forward, term: Term) -> DenseCode | EntryCode:
    """The code with the values max(π, 0)."""
    needs_gate(term, forward.dictionary.activation)
    code = pre_code(forward, term)
    return code.with_values(jax.nn.relu(code.pre))


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class GateL1(Term):
    """`coefficient` · mean Σ max(π_i, 0): the L1 of the gate."""

    entries_suffice = True
    coefficient: float = 0.01
    warmup: float = 0.05

    def check(self, activation: Activation) -> None:
        needs_gate(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        return warmed_up(self.coefficient, forward, self.warmup) * jnp.sum(_gate(forward, self).values) / forward.rows


@TERMS.register
@coefficient_only
@dataclasses.dataclass(frozen=True)
class FrozenDecoder(Term):
    """`coefficient` · the squared error of the reconstruction from max(π, 0). The decoder gets no gradient."""

    entries_suffice = True
    coefficient: float = 1.0
    kind: Kind = "fvu"

    def check(self, activation: Activation) -> None:
        needs_gate(self, activation)

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        W_dec, b_dec = jax.lax.stop_gradient((forward.dictionary.W_dec, forward.dictionary.b_dec))
        y_hat: Any = _gate(forward, self).decode(W_dec)
        error = forward.y - y_hat - b_dec[None, :]
        if forward.dictionary.W_skip is not None:
            error = error - jax.lax.stop_gradient(forward.x @ forward.dictionary.W_skip)
        return self.coefficient * squared_error_loss(error, forward, self.kind)
