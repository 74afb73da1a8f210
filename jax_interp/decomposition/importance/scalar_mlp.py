"""One small MLP for each component, which reads the component's inner activation (SPD 2025)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.components import Decomposed, spec_of
from jax_interp.decomposition.importance.base import (
    IMPORTANCE_FUNCTIONS,
    ImportanceConfig,
    PerMatrix,
    gelu,
    inner_activations,
    normal_cdf,
    normal_init,
)
from jax_interp.decomposition.matrices import is_stacked


@IMPORTANCE_FUNCTIONS.register
@reads_older_files(called=("ScalarGates",))
@dataclasses.dataclass(frozen=True)
class ScalarMLP(ImportanceConfig):
    """One MLP for each component: `g_c = Σ_h wo[c, h] gelu(wi[c, h] a_c + bi[c, h]) + bo[c]`, with a = x V.

    `hidden` is the number of hidden units h. SPD 2025 uses 16, and 128 for residual MLPs of three layers.
    """

    row_by_row: ClassVar[bool] = True
    hidden: int = 16

    def init(self, key: Key[Array, ""], model: Decomposed) -> ScalarMLPFunction:
        found = {}
        for i, name in enumerate(model.names):
            shape = model.of(name).V.shape
            first, second = jax.random.split(jax.random.fold_in(key, i))
            rows = (*shape[:-2], shape[-1])
            found[name] = ScalarMLPs(
                normal_init(first, (*rows, self.hidden), 1, 2**0.5),
                jnp.zeros((*rows, self.hidden)),
                normal_init(second, (*rows, self.hidden), self.hidden),
                jnp.zeros(rows),
            )
        return ScalarMLPFunction(found)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ScalarMLPs:
    """The MLPs of one matrix, one for each component."""

    wi: Float[Array, "*layer C hidden"]
    bi: Float[Array, "*layer C hidden"]
    wo: Float[Array, "*layer C hidden"]
    bo: Float[Array, "*layer C"]

    def __call__(self, a: Float[Array, "*rows C"]) -> Float[Array, "*rows C"]:
        parameters = [w.astype(a.dtype) for w in (self.wi, self.bi, self.wo, self.bo)]
        if a.ndim == 2:
            return scalar_mlp_values(a, *parameters)
        wi, bi, wo, bo = (jnp.expand_dims(w, range(a.ndim - 1)) for w in parameters)
        return jnp.sum(gelu(a[..., None] * wi + bi) * wo, axis=-1) + bo


@jax.custom_vjp
def scalar_mlp_values(a: Float[Array, "row C"], wi: Array, bi: Array, wo: Array, bo: Array) -> Float[Array, "row C"]:
    """The values of all MLPs.

    These MLPs are most of the cost of a small decomposition, so the order of axes and operations is chosen by hand. The
    forward pass is unrolled over hidden units: it is one elementwise loop without an array `[row, C, hidden]`. For a
    gradient, gelu and its derivative are stored as `[C, hidden, row]`, because XLA vectorises the last axis.
    """
    total = jnp.broadcast_to(bo[None], a.shape)
    for h in range(wi.shape[1]):
        total = total + wo[None, :, h] * gelu(a * wi[None, :, h] + bi[None, :, h])
    return total


@custom_vmap
def _forward(
    a: Float[Array, "row C"], wi: Array, bi: Array, wo: Array, bo: Array
) -> tuple[Array, Float[Array, "C row"], Float[Array, "C hidden row"], Float[Array, "C hidden row"]]:
    """The values, and the arrays that the backward pass needs: `a` transposed, gelu, and the derivative of gelu."""
    turned = a.T
    z = turned[:, None, :] * wi[:, :, None] + bi[:, :, None]
    cdf, density = normal_cdf(z), jnp.exp(-0.5 * z * z) * (2 * math.pi) ** -0.5
    value, slope = z * cdf, cdf + z * density
    return _sum_over_hidden(value, wo) + bo[None], turned, value, slope


@custom_vmap
def _backward(
    turned: Float[Array, "C row"], value: Array, slope: Array, wi: Array, wo: Array, grad: Float[Array, "row C"]
) -> tuple[Array, Array, Array, Array, Array]:
    """The gradients of a, wi, bi, wo and bo. A mesh may split the rows; sums over rows are sharded like parameters."""
    g, spec = grad.T, spec_of(wi)
    each, every = (None, None) if spec is None else (jax.P(*spec), jax.P(None, *spec))
    both = jnp.einsum("kcb,chb->kch", jnp.stack([g, g * turned]), slope, out_sharding=every)
    dbo = jnp.sum(grad, axis=0)
    return (
        grad * _sum_over_hidden(slope, wo * wi),
        wo * both[1],
        wo * both[0],
        jnp.einsum("cb,chb->ch", g, value, out_sharding=each),
        dbo if spec is None else jax.sharding.reshard(dbo, jax.P(spec[0])),
    )


@_forward.def_vmap
def _(size: int, batched: Sequence[bool], a: Array, *parameters: Array) -> tuple[Any, Any]:
    """Treat instances and layers as more components, because each has its own MLP. Another leading axis would be much
    slower on XLA's CPU backend."""
    rows, *networks = _with_axis(size, batched, (a, *parameters))
    g, *kept = _forward(_instances_as_components(rows), *map(_merge_axes, networks))
    return (_as_instances(g, size), *(_split(x, size) for x in kept)), (True,) * 4


@_backward.def_vmap
def _(size: int, batched: Sequence[bool], *inputs: Array) -> tuple[Any, Any]:
    *kept, grad = _with_axis(size, batched, inputs)
    da, *rest = _backward(*map(_merge_axes, kept), _instances_as_components(grad))
    return (_as_instances(da, size), *(_split(x, size) for x in rest)), (True,) * 5


def _with_axis(size: int, batched: Sequence[bool], arrays: Sequence[Array]) -> list[Array]:
    return [x if on else jnp.broadcast_to(x, (size, *x.shape)) for x, on in zip(arrays, batched, strict=True)]


def _merge_axes(x: Float[Array, "n C *rest"]) -> Float[Array, "nC *rest"]:
    return x.reshape(-1, *x.shape[2:])


def _split(x: Float[Array, "nC *rest"], n: int) -> Float[Array, "n C *rest"]:
    return x.reshape(n, -1, *x.shape[1:])


def _instances_as_components(x: Float[Array, "n row C"]) -> Float[Array, "row nC"]:
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)


def _as_instances(x: Float[Array, "row nC"], n: int) -> Float[Array, "n row C"]:
    return jnp.moveaxis(x.reshape(x.shape[0], n, -1), 1, 0)


def _values_forward(a: Array, wi: Array, bi: Array, wo: Array, bo: Array) -> tuple[Array, tuple[Array, ...]]:
    g, *kept = _forward(a, wi, bi, wo, bo)
    return g, (*kept, wi, wo)


def _values_backward(kept: tuple[Array, ...], grad: Array) -> tuple[Array, ...]:
    return _backward(*kept, grad)


def _sum_over_hidden(values: Float[Array, "C hidden row"], weights: Float[Array, "C hidden"]) -> Float[Array, "row C"]:
    """The weighted sum over hidden units, written as a matrix product. XLA would fuse a sum of slices into every
    operation that uses the sum, and repeat the work. On a mesh each device holds the weights of its own components."""
    if (spec := spec_of(values)) is not None:
        weights = jax.sharding.reshard(weights, jax.P(*spec[:2]))
    return jnp.einsum("chb,ch->cb", values, weights).T


scalar_mlp_values.defvjp(_values_forward, _values_backward)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class ScalarMLPFunction:
    """The importance function of `ScalarMLP`. Saved files use the name of the field `gates`."""

    gates: dict[str, ScalarMLPs]

    def __call__(self, model: Decomposed, inputs: PerMatrix) -> PerMatrix:
        found = {}
        for name, a in inner_activations(model, inputs).items():
            mlps = self.gates[name]
            found[name] = jax.vmap(lambda mlps, a: mlps(a))(mlps, a) if is_stacked(name) else mlps(a)
        return found
