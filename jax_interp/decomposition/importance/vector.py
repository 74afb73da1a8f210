"""Vector gates: a small network for each component, from everything its matrix reads."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.decomposition.components import over
from jax_interp.decomposition.importance.inputs import PerMatrix, dense, gelu, vectors
from jax_interp.decomposition.matrices import is_stacked


@dataclasses.dataclass(frozen=True)
class VectorGates:
    """`g_c = Σ_h wo[c, h] gelu(Σ_i wi[c, i, h] x_i + bi[c, h]) + bo[c]`. Memory: rows · C · hidden."""

    hidden: int = 16

    def init(self, key: Key[Array, ""], model: Any) -> Vector:
        gates = {}
        for i, name in enumerate(model.names):
            *layer, d_in, C = model.of(name).V.shape
            first, second = jax.random.split(jax.random.fold_in(key, i))
            gates[name] = VectorGate(
                dense(first, (*layer, C, d_in, self.hidden), d_in, 2**0.5),
                jnp.zeros((*layer, C, self.hidden)),
                dense(second, (*layer, C, self.hidden), self.hidden),
                jnp.zeros((*layer, C)),
            )
        return Vector(gates)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VectorGate:
    wi: Float[Array, "*layer C d_in hidden"]
    bi: Float[Array, "*layer C hidden"]
    wo: Float[Array, "*layer C hidden"]
    bo: Float[Array, "*layer C"]

    def __call__(self, x: Float[Array, "*rows d_in"]) -> Float[Array, "*rows C"]:
        z = jnp.einsum("...i,cih->...ch", x, self.wi.astype(x.dtype))
        g = jnp.einsum("...ch,ch->...c", gelu(z + over(self.bi, z)), self.wo.astype(x.dtype))
        return g + over(self.bo, g)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vector:
    gates: dict[str, VectorGate]

    def __call__(self, model: Any, inputs: PerMatrix) -> PerMatrix:
        call = lambda gate, x: gate(x)
        return {
            name: (jax.vmap(call) if is_stacked(name) else call)(self.gates[name], x)
            for name, x in vectors(inputs).items()
        }
