"""Terms that train the gate of a Gated dictionary (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 8).

GateL1          λ mean Σ max(π_i, 0)
FrozenDecoder   the error of decoding max(π, 0) with the decoder, its bias and a skip held fixed: the gate learns to
                detect features, and cannot pull the decoder into shrinking them
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.activations.gated import Gate
from jax_interp.dictionaries.codes import DenseCode, EntryCode
from jax_interp.dictionaries.losses.forward import Forward, coefficient_only, pre_code, warmed
from jax_interp.dictionaries.losses.reconstruction import Kind, of_error


def _gate(forward: Forward, asker: Any) -> DenseCode | EntryCode:
    """A code of max(π, 0)."""
    if not isinstance(forward.dictionary.activation, Gate):
        kind = type(forward.dictionary.activation).__name__
        raise UserError(f"{type(asker).__name__} trains a gate, {kind} has none: use Gated")
    code = pre_code(forward, asker)
    return code.valued(jax.nn.relu(code.pre))


@coefficient_only
@dataclasses.dataclass(frozen=True)
class GateL1:
    entries_suffice: ClassVar[bool] = True
    coefficient: float = 0.01
    warmup: float = 0.05

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        return warmed(self.coefficient, forward, self.warmup) * jnp.sum(_gate(forward, self).values) / forward.rows


@coefficient_only
@dataclasses.dataclass(frozen=True)
class FrozenDecoder:
    entries_suffice: ClassVar[bool] = True
    coefficient: float = 1.0
    kind: Kind = "fvu"

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        W_dec, b_dec = jax.lax.stop_gradient((forward.dictionary.W_dec, forward.dictionary.b_dec))
        y_hat: Any = _gate(forward, self).decode(W_dec)
        error = forward.y - y_hat - b_dec[None, :]
        if forward.dictionary.W_skip is not None:
            error = error - jax.lax.stop_gradient(forward.x @ forward.dictionary.W_skip)
        return self.coefficient * of_error(error, forward, self.kind)
