"""Scalar gates: a small network for each component, from its own activation to one number (SPD 2025)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.decomposition.importance.inputs import PerMatrix, dense, gelu, inner
from jax_interp.decomposition.matrices import is_stacked


@dataclasses.dataclass(frozen=True)
class ScalarGates:
    """`g_c = Σ_h wo[c, h] gelu(wi[c, h] a_c + bi[c, h]) + bo[c]`, with a = x V and `hidden` values of h."""

    hidden: int = 16

    def init(self, key: Key[Array, ""], model: Any) -> Scalar:
        gates = {}
        for i, name in enumerate(model.names):
            shape = model.of(name).V.shape
            first, second = jax.random.split(jax.random.fold_in(key, i))
            rows = (*shape[:-2], shape[-1])
            gates[name] = Gate(
                dense(first, (*rows, self.hidden), 1, 2**0.5),
                jnp.zeros((*rows, self.hidden)),
                dense(second, (*rows, self.hidden), self.hidden),
                jnp.zeros(rows),
            )
        return Scalar(gates)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gate:
    """The networks of one entry."""

    wi: Float[Array, "*layer C hidden"]
    bi: Float[Array, "*layer C hidden"]
    wo: Float[Array, "*layer C hidden"]
    bo: Float[Array, "*layer C"]

    def __call__(self, a: Float[Array, "*rows C"]) -> Float[Array, "*rows C"]:
        over = lambda w: jnp.expand_dims(w, range(a.ndim - 1)).astype(a.dtype)
        hidden = gelu(a[..., None] * over(self.wi) + over(self.bi))
        return jnp.sum(hidden * over(self.wo), axis=-1) + over(self.bo)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scalar:
    gates: dict[str, Gate]

    def __call__(self, model: Any, inputs: PerMatrix) -> PerMatrix:
        found = {}
        for name, a in inner(model, inputs).items():
            gate = self.gates[name]
            found[name] = jax.vmap(lambda g, a: g(a))(gate, a) if is_stacked(name) else gate(a)
        return found
