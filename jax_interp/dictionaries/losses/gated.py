"""Terms that train the gate of a Gated dictionary (Rajamanoharan et al. 2024, arXiv:2404.16014, eq. 8).

GateL1          λ mean Σ max(π_i, 0)
FrozenDecoder   the error of decoding max(π, 0) with the decoder and its bias held fixed: the gate learns to detect
                features, and cannot pull the decoder into shrinking them
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.dictionaries.activations.gated import Gate
from jax_interp.dictionaries.losses.forward import Forward, coefficient_only, dense_code, warmed
from jax_interp.dictionaries.losses.reconstruction import Kind, of_error
from jax_interp.errors import UserError


def _gate(forward: Forward, asker: Any) -> Float[Array, "row feature"]:
    """max(π, 0)."""
    if not isinstance(forward.dictionary.activation, Gate):
        kind = type(forward.dictionary.activation).__name__
        raise UserError(f"{type(asker).__name__} trains a gate, {kind} has none: use Gated")
    return jax.nn.relu(dense_code(forward, asker).pre)


@coefficient_only
@dataclasses.dataclass(frozen=True)
class GateL1:
    coefficient: float = 0.01
    warmup: float = 0.05

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        return warmed(self.coefficient, forward, self.warmup) * jnp.sum(_gate(forward, self)) / forward.rows


@coefficient_only
@dataclasses.dataclass(frozen=True)
class FrozenDecoder:
    coefficient: float = 1.0
    kind: Kind = "fvu"

    def __call__(self, forward: Forward) -> Float[Array, ""]:
        W_dec, b_dec = jax.lax.stop_gradient((forward.dictionary.W_dec, forward.dictionary.b_dec))
        error = forward.y - _gate(forward, self) @ W_dec - b_dec[None, :]
        return self.coefficient * of_error(error, forward, self.kind)
