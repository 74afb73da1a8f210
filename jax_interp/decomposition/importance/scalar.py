"""Scalar gates: a small network for each component, from its own activation to one number (SPD 2025)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.decomposition.importance.inputs import PerMatrix, dense, gelu, inner, normal_cdf
from jax_interp.decomposition.matrices import is_stacked

FEW_LAYERS = 4


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
        parameters = [w.astype(a.dtype) for w in (self.wi, self.bi, self.wo, self.bo)]
        if a.ndim == 2:
            return gate_values(a, *parameters)
        wi, bi, wo, bo = (jnp.expand_dims(w, range(a.ndim - 1)) for w in parameters)
        return jnp.sum(gelu(a[..., None] * wi + bi) * wo, axis=-1) + bo


@jax.custom_vjp
def gate_values(a: Float[Array, "row C"], wi: Array, bi: Array, wo: Array, bo: Array) -> Float[Array, "row C"]:
    """The networks' values. They are most of the cost of a small decomposition, so the order of axes and of work is
    chosen: unrolled over hidden units, one elementwise loop without an array of `row C hidden`; where a gradient is
    asked for, gelu and its derivative are kept as `[C, hidden, row]`, over whose last axis sums are vectorised.
    """
    total = jnp.broadcast_to(bo[None], a.shape)
    for h in range(wi.shape[1]):
        total = total + wo[None, :, h] * gelu(a * wi[None, :, h] + bi[None, :, h])
    return total


def _gate_forward(a: Array, wi: Array, bi: Array, wo: Array, bo: Array) -> tuple[Array, tuple[Array, ...]]:
    turned = a.T
    z = turned[:, None, :] * wi[:, :, None] + bi[:, :, None]
    cdf, density = normal_cdf(z), jnp.exp(-0.5 * z * z) * (2 * math.pi) ** -0.5
    value, slope = z * cdf, cdf + z * density
    return _over_hidden(value, wo) + bo[None], (turned, value, slope, wi, wo)


def _gate_backward(kept: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    turned, value, slope, wi, wo = kept
    g = grad.T
    both = jnp.einsum("kcb,chb->kch", jnp.stack([g, g * turned]), slope)
    return (
        grad * _over_hidden(slope, wo * wi),
        wo * both[1],
        wo * both[0],
        jnp.einsum("cb,chb->ch", g, value),
        jnp.sum(grad, axis=0),
    )


def _over_hidden(values: Float[Array, "C hidden row"], weights: Float[Array, "C hidden"]) -> Float[Array, "row C"]:
    """The weighted sum over hidden units, as a product: XLA would fuse a sum of slices into everything that reads it,
    and do it again there each time."""
    return jnp.einsum("chb,ch->cb", values, weights).T


gate_values.defvjp(_gate_forward, _gate_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scalar:
    gates: dict[str, Gate]

    def __call__(self, model: Any, inputs: PerMatrix) -> PerMatrix:
        found = {}
        for name, a in inner(model, inputs).items():
            gate = self.gates[name]
            found[name] = _by_layer(gate, a) if is_stacked(name) else gate(a)
        return found


def _by_layer(gate: Gate, a: Float[Array, "layer *rows C"]) -> Float[Array, "layer *rows C"]:
    """Every layer's gates. Few layers are gone through one by one: XLA's CPU backend makes much worse loops of arrays
    with another leading axis."""
    if a.shape[0] > FEW_LAYERS:
        return jax.vmap(lambda gate, a: gate(a))(gate, a)
    return jnp.stack([jax.tree.map(lambda leaf, at=i: leaf[at], gate)(a[i]) for i in range(a.shape[0])])
