"""Causal importance functions: the base class and registry of their configs, and helpers that all of them use.

A causal importance function (`ci_fn`) predicts how much each component of a matrix is needed on one input. It reads the
inputs of the matrices in the *target*, never masked activations. It returns one value for each component. A pair of
sigmoids turns this value into two importances (`sigmoids.py`).
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.decomposition.components import Decomposed, spec_of
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.decomposition.sigmoids import sigmoid_pair
from jax_interp.surgery import read

PerMatrix = dict[str, Float[Array, "*layer_and_rows"]]
"""One array for each decomposed matrix, by its entry (`linear1`, `blocks.*.mlp.up`)."""


class ImportanceFunction(Protocol):
    """A pytree of parameters. It is called with the inputs of all matrices."""

    def __call__(self, model: Decomposed, inputs: PerMatrix) -> PerMatrix:
        """Values before the sigmoid, `[*layer, batch, ..., C]` for each matrix.

        Args:
          model: the decomposed model. It gives V to functions that use the inner activations x V.
          inputs: the input of each matrix in the target, `[*layer, batch, ..., d_in]`.
        """
        ...


class ImportanceConfig:
    """Base class of the configs of causal importance functions. A subclass is a frozen dataclass.

    A new importance function is one file:

        @IMPORTANCE_FUNCTIONS.register
        @dataclasses.dataclass(frozen=True)
        class Linear(ImportanceConfig):
            def init(self, key, model): ...     # returns a pytree with __call__(model, inputs)

    Attributes:
      row_by_row: whether the values of a row depend only on the inputs of this row, if there is no position axis.
        Rows of zeros are then computed once for a whole batch (`zero_rows.py`).
    """

    row_by_row: ClassVar[bool] = False

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], model: Decomposed) -> ImportanceFunction:
        """The importance function with its initial parameters.

        Args:
          key: random key of the initial values.
          model: the decomposed model; shapes come from its V and U.
        """
        raise NotImplementedError


IMPORTANCE_FUNCTIONS = Registry("importance function", ImportanceConfig)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Importance:
    """Causal importances of every component, each array `[*layer, batch, ..., C]`.

    pre_sigmoid: the importance function's values before the sigmoid.
    lower: the importances that masks use.
    upper: the importances that minimality losses use.
    """

    pre_sigmoid: PerMatrix
    lower: PerMatrix
    upper: PerMatrix


def read_inputs(model: Decomposed, *args: Any, outputs: bool = False, **kwargs: Any) -> tuple[Array, PerMatrix, Any]:
    """One forward pass of the target, without gradients.

    Args:
      model: the decomposed model.
      *args: the model's positional arguments.
      outputs: whether to return the outputs of the matrices too.
      **kwargs: keyword arguments of the model.

    Returns:
      `(output, inputs, hidden)`: the target's output, the input of each decomposed matrix, and the output of each
      decomposed matrix (None unless `outputs`).
    """
    addresses = [f"{name}.input" for name in model.names]
    if outputs:
        addresses += [f"{name}.output" for name in model.names]
    out, acts = jax.lax.stop_gradient(read(model, *addresses)(*args, **kwargs))
    inputs = {name: acts[f"{name}.input"] for name in model.names}
    return out, inputs, {name: acts[f"{name}.output"] for name in model.names} if outputs else None


def causal_importance(pre_sigmoid: PerMatrix, sigmoid: str = "leaky_hard") -> Importance:
    """Lower and upper importances from an importance function's values.

    Args:
      pre_sigmoid: the values, `[*layer, batch, ..., C]` for each matrix.
      sigmoid: the name of a pair of sigmoids (`sigmoids.SIGMOIDS`).
    """
    pair = sigmoid_pair(sigmoid)
    both = ({name: one(g) for name, g in pre_sigmoid.items()} for one in (pair.lower, pair.upper))
    return Importance(pre_sigmoid, *both)


def inner_activations(model: Decomposed, inputs: PerMatrix) -> PerMatrix:
    """The inner activations x V of every matrix, `[*layer, batch, ..., C]`. Gradients flow into V."""
    return {name: model.of(name).inner(x) for name, x in inputs.items()}


def require_vectors(inputs: PerMatrix) -> PerMatrix:
    """Returns the inputs unchanged. Raises UserError if one of them is the token ids of an embedding."""
    for name, x in inputs.items():
        if jnp.issubdtype(x.dtype, jnp.integer):
            raise UserError(
                f"{name!r} reads indices, and this importance function needs vectors: decompose an embedding with "
                "ScalarMLP, which reads its inner activations"
            )
    return inputs


def concatenate_matrices(values: PerMatrix) -> Float[Array, "*rows feature"]:
    """All matrices' values, concatenated along the last axis in the order of their names, layer by layer."""
    columns = []
    for name in sorted(values):
        x = values[name]
        if (spec := spec_of(x)) is not None:  # a split last axis cannot be concatenated
            x = jax.sharding.reshard(x, jax.P(*spec[:-1], None))
        if is_stacked(name):
            x = jnp.moveaxis(x, 0, -2)
            x = x.reshape(*x.shape[:-2], -1)
        columns.append(x)
    return jnp.concatenate(columns, axis=-1)


def split_components(joint: Float[Array, "*rows component"], model: Decomposed) -> PerMatrix:
    """The inverse of `concatenate_matrices` for components: one array for each matrix."""
    found, first = {}, 0
    for name in sorted(model.names):
        shape = model.of(name).V.shape
        layers = shape[:-2]
        width = shape[-1] * (layers[0] if layers else 1)
        x = joint[..., first : first + width]
        found[name] = jnp.moveaxis(x.reshape(*x.shape[:-1], *layers, shape[-1]), -2, 0) if layers else x
        first += width
    return found


def total_widths(model: Decomposed) -> tuple[int, int]:
    """The total number of inputs and the total number of components, over all matrices and layers."""
    shapes = [model.of(name).V.shape for name in model.names]
    count = lambda shape, axis: shape[axis] * (shape[0] if len(shape) == 3 else 1)
    return sum(count(shape, -2) for shape in shapes), sum(count(shape, -1) for shape in shapes)


def normal_init(key: Array, shape: tuple[int, ...], fan_in: int, gain: float = 1.0) -> Float[Array, "..."]:
    """Gaussian weights with standard deviation gain / √fan_in. Use gain √2 for a layer before a rectifier."""
    return jax.random.normal(key, shape, jnp.float32) * (gain / fan_in**0.5)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact gelu, `x Φ(x)` with Φ by erf, as in the published code."""
    return x * normal_cdf(x)


def normal_cdf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Φ, the normal distribution function. `jax.nn.gelu` uses erfc, which costs twice as much."""
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))
