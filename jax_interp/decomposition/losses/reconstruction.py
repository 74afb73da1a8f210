"""Reconstruction losses: with some components masked, the model still has the target's outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.objectives import mean_squared_error
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.losses.base import LOSSES, Loss, LossInputs, relative_errors
from jax_interp.decomposition.masks import (
    Mask,
    Masks,
    bernoulli_routes,
    masks_from_values,
    route_masks,
    subset_routes,
)
from jax_interp.decomposition.matrices import is_stacked, layer_address, row_axes
from jax_interp.surgery import iter_segments


def mean_over_samples(samples: int, key: Array, loss: Callable[[Array], Array]) -> Float[Array, ""]:
    """The mean of `loss(key)` over `samples` keys."""
    keys = [jax.random.fold_in(key, i) for i in range(samples)]
    return sum((loss(k) for k in keys), jnp.zeros(())) / samples


def layerwise_error(inputs: LossInputs, masks: dict[str, Mask]) -> Float[Array, ""]:
    """The error with only one matrix of one layer masked; the mean over all matrices and layers."""
    total, count = jnp.zeros(()), 0
    for name, mask in masks.items():
        if not is_stacked(name):
            total, count = total + inputs.error({name: mask}), count + 1
            continue
        depth = mask.components.shape[0]
        if not any(segment.stacked for segment in iter_segments(inputs.model)):
            # the model is unrolled, so each layer has its own address
            for layer in range(depth):
                one_layer = jax.tree.map(lambda m, at=layer: m[at] if m.ndim else m, mask)
                total = total + inputs.error({layer_address(name, layer): one_layer})
            count += depth
            continue
        layers = jnp.arange(depth, dtype=jnp.int32)

        def one(layer, name=name, mask=mask, layers=layers):
            on = jnp.broadcast_to(
                jnp.expand_dims(layers == layer, range(1, mask.components.ndim - 1)), mask.components.shape[:-1]
            )
            return inputs.error(route_masks({name: mask}, {name: on}))

        total, count = total + jnp.sum(jax.lax.map(one, layers)), count + depth
    return total / count


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class StochasticReconstruction(Loss):
    """The error with all matrices masked by random m = g + (1 - g) r (SPD 2025); the mean over `samples` draws."""

    coefficient: float = 1.0
    samples: int = 1

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        return mean_over_samples(self.samples, key, lambda key: inputs.error(inputs.stochastic_masks(key)))


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class StochasticLayerwise(Loss):
    """The error with one matrix masked at a time; the mean over matrices (SPD 2025). Masks are drawn for this term."""

    coefficient: float = 1.0
    samples: int = 1

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        return mean_over_samples(self.samples, key, lambda key: layerwise_error(inputs, inputs.stochastic_masks(key)))


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class StochasticSubset(Loss):
    """The error with a random subset of the matrices masked at each row (VPD 2026).

    routing: "uniform_k_subset": the size of the subset is uniformly random. "static_probability": each matrix is masked
      independently with probability `probability`.
    """

    coefficient: float = 0.5
    samples: int = 1
    routing: Literal["uniform_k_subset", "static_probability"] = "uniform_k_subset"
    probability: float = 0.5

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        def one(key: Array) -> Float[Array, ""]:
            for_masks, for_routes = jax.random.split(key)
            return inputs.error(route_masks(inputs.stochastic_masks(for_masks), self.routes(inputs.lower, for_routes)))

        return mean_over_samples(self.samples, key, one)

    def routes(self, lower: PerMatrix, key: Array) -> dict[str, Array]:
        """For each matrix, True at the rows where it is masked."""
        if self.routing == "uniform_k_subset":
            return subset_routes(key, lower)
        return bernoulli_routes(key, lower, self.probability)


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class Unmasked(Loss):
    """The error with all components on and Δ off."""

    coefficient: float = 1.0

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        return inputs.error(masks_from_values({name: jnp.ones_like(g) for name, g in inputs.lower.items()}))


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class ImportanceMasked(Loss):
    """The error with masks equal to the importances and Δ off.

    As a training loss it rewards importances that encode the values of activations.
    """

    coefficient: float = 1.0

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        return inputs.error(masks_from_values(inputs.lower))


def hidden_errors(inputs: LossInputs, masks: Masks, relative: bool = False) -> dict[str, Float[Array, "*layer"]]:
    """The mean squared error of each matrix's output under masks.

    Args:
      inputs: the batch. `hidden` must hold the outputs of all matrices.
      masks: the masks by entry. A matrix without a mask keeps the target's weights.
      relative: divide by the mean square of the target's output. For an output that is 0 everywhere the divisor is
        the largest mean square of all matrices (see `relative_errors`).

    Raises:
      UserError: `inputs.hidden` is None.
    """
    if inputs.hidden is None:
        raise UserError("LossInputs.hidden is None: read_inputs(..., outputs=True) gives the matrices' outputs")
    acts = inputs.masked(masks, *(f"{name}.output" for name in inputs.hidden))
    axes = {name: (*row_axes(name, target), -1) for name, target in inputs.hidden.items()}
    targets = inputs.hidden.items()
    errors = {name: mean_squared_error(target, acts[f"{name}.output"], axes[name]) for name, target in targets}
    if not relative:
        return errors
    return relative_errors(errors, {name: jnp.mean(upcast(target) ** 2, axis=axes[name]) for name, target in targets})


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class HiddenReconstruction(Loss):
    """The mean of `hidden_errors` over matrices, with stochastic masks or with the importances as masks."""

    coefficient: float = 1.0
    masks: Literal["stochastic", "importance"] = "stochastic"
    relative: bool = False
    needs_hidden: ClassVar[bool] = True

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        masks = inputs.stochastic_masks(key) if self.masks == "stochastic" else masks_from_values(inputs.lower)
        errors = hidden_errors(inputs, masks, self.relative)
        return jnp.mean(jnp.concatenate([jnp.atleast_1d(error) for error in errors.values()]))
