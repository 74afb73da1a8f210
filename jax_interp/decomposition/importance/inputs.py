"""What importance functions see, and what they give: gate values and the two importances made of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Decomposed, spec_of
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.decomposition.sigmoids import SIGMOIDS
from jax_interp.surgery import read

PerMatrix = dict[str, Float[Array, "*layer_and_rows"]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Importance:
    """Of every component of every entry, `[*layer, batch, ..., C]`: `lower` is what masks are made of, `upper` what
    sparsity is asked of; `gates` are the values before the sigmoid."""

    gates: PerMatrix
    lower: PerMatrix
    upper: PerMatrix


def read_inputs(model: Decomposed, *args: Any, outputs: bool = False, **kwargs: Any) -> tuple[Array, PerMatrix, Any]:
    """The target's output, what each decomposed matrix reads there, and (with `outputs`) what comes out of each.

    One forward pass of the target; gradients do not flow through it.
    """
    addresses = [f"{name}.input" for name in model.names]
    if outputs:
        addresses += [f"{name}.output" for name in model.names]
    out, acts = jax.lax.stop_gradient(read(model, *addresses)(*args, **kwargs))
    inputs = {name: acts[f"{name}.input"] for name in model.names}
    return out, inputs, {name: acts[f"{name}.output"] for name in model.names} if outputs else None


def causal_importance(gates: PerMatrix, sigmoid: str = "leaky_hard") -> Importance:
    """Both importances of gate values, by the name of a pair of sigmoids (`sigmoids.SIGMOIDS`)."""
    lower, upper = SIGMOIDS[sigmoid]
    return Importance(gates, {n: lower(g) for n, g in gates.items()}, {n: upper(g) for n, g in gates.items()})


def init_importance(config: Any, key: Key[Array, ""], model: Decomposed) -> Any:
    """The parameters of an importance function for this model: a pytree, called as `gates(model, inputs)`."""
    return config.init(key, model)


def inner(model: Decomposed, inputs: PerMatrix) -> PerMatrix:
    """The components' activations x V of every entry. Gradients flow into V."""
    return {name: model.of(name).inner(x) for name, x in inputs.items()}


def vectors(inputs: PerMatrix) -> PerMatrix:
    """The inputs, all of them vectors. Raises UserError where one is an embedding's indices."""
    for name, x in inputs.items():
        if jnp.issubdtype(x.dtype, jnp.integer):
            raise UserError(
                f"{name!r} reads indices, and this importance function needs vectors: decompose an embedding with "
                "ScalarGates, which see its inner activations"
            )
    return inputs


def joined(values: PerMatrix) -> Float[Array, "*rows feature"]:
    """All entries side by side, sorted by name; layers of one entry are neighbours."""
    columns = []
    for name in sorted(values):
        x = values[name]
        if (spec := spec_of(x)) is not None:  # split features of several entries do not lie side by side
            x = jax.sharding.reshard(x, jax.P(*spec[:-1], None))
        if is_stacked(name):
            x = jnp.moveaxis(x, 0, -2)
            x = x.reshape(*x.shape[:-2], -1)
        columns.append(x)
    return jnp.concatenate(columns, axis=-1)


def parted(joint: Float[Array, "*rows component"], model: Decomposed) -> PerMatrix:
    """`joined`, undone: one column for each component of each entry, layer by layer."""
    found, first = {}, 0
    for name in sorted(model.names):
        shape = model.of(name).V.shape
        layers = shape[:-2]
        width = shape[-1] * (layers[0] if layers else 1)
        x = joint[..., first : first + width]
        found[name] = jnp.moveaxis(x.reshape(*x.shape[:-1], *layers, shape[-1]), -2, 0) if layers else x
        first += width
    return found


def widths(model: Decomposed) -> tuple[int, int]:
    """The number of columns of `joined` inputs, and of components in all."""
    shapes = [model.of(name).V.shape for name in model.names]
    count = lambda shape, axis: shape[axis] * (shape[0] if len(shape) == 3 else 1)
    return sum(count(shape, -2) for shape in shapes), sum(count(shape, -1) for shape in shapes)


def dense(key: Array, shape: tuple[int, ...], fan_in: int, gain: float = 1.0) -> Float[Array, "..."]:
    """Gaussian weights of standard deviation gain / √fan_in; a layer before a rectifier has gain √2."""
    return jax.random.normal(key, shape, jnp.float32) * (gain / fan_in**0.5)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact one, `x Φ(x)` with Φ by erf, as in the published code."""
    return x * normal_cdf(x)


def normal_cdf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Φ. `jax.nn.gelu` takes erfc, which keeps relative precision far below zero and costs twice as much."""
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))
