"""Methods of attribution by gradients: estimates of the effect of patching each unit, from few backward passes.

    Gradient()                               difference × gradient: one backward pass for all units
    IntegratedGradients(of="inputs")         gradients at inputs between the two runs (EAP-IG)
    IntegratedGradients(of="activations")    gradients at values of the unit between its two values

Every estimate is of `node_effects`: the metric of the run with the unit patched minus the metric of the run. With the
difference Δ = (value of the other run) - (own value), the estimate is Σ Δ · ∂m/∂value over the entries of the unit.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.circuits.contrast import Contrast, inputs_of, measure
from jax_interp.circuits.units import Mix, Nodes, NodeValue
from jax_interp.core.errors import UserError
from jax_interp.surgery import Add, Each, Edit, at, edit, values_at
from jax_interp.surgery.contract import Model
from jax_interp.surgery.value_tokens import wide

Rule = Literal["midpoint", "left"]
"""Where the gradient is taken on the way from the run (weight 0 of the other value) to the other run (weight 1), with m
steps. midpoint: (k + ½)/m; the error falls as 1/m². left: 1, 1 - 1/m, …, 1/m, as in EAP-IG, which leaves out the run
itself; the error falls as 1/m."""


class Method(abc.ABC):
    """Base class of the methods of `attribute`: a frozen dataclass of static choices."""

    @property
    def signed(self) -> bool:
        """Whether estimates have a sign. If not, they estimate the magnitude of the effect on each prompt."""
        return True

    def check(self, nodes: Nodes, depth: int) -> None:  # noqa: B027  (a default, not a missing method)
        """Raise `UserError` if the method has no meaning for these units in a model of `depth` layers."""

    @abc.abstractmethod
    def estimate(
        self, model: Model, contrast: Contrast, nodes: Nodes, others: Mapping[str, Array]
    ) -> Float[Array, "prompt unit"]:
        """The estimated effect of patching each unit alone. It can be traced.

        Args:
          model: the model.
          contrast: prompts and metric. The clean prompts are run, in both directions of patching: `attribute` exchanges
            the prompts.
          nodes: the units.
          others: the values that units are patched with, by address.
        """


@dataclasses.dataclass(frozen=True)
class Gradient(Method):
    """Attribution patching: Σ Δ · ∂m/∂value, with the gradient of the run that is patched (Nanda 2023; Syed et al.
    2023, arXiv:2310.10348). It is exact where the metric is linear in the value."""

    def estimate(
        self, model: Model, contrast: Contrast, nodes: Nodes, others: Mapping[str, Array]
    ) -> Float[Array, "prompt unit"]:
        deltas = differences(model, contrast, nodes, others)
        return unit_gradients(lambda edits: edit(model, *edits), contrast, nodes, deltas)


@dataclasses.dataclass(frozen=True)
class IntegratedGradients(Method):
    """Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365): Δ times the mean gradient on a straight path.

    of="inputs" runs the model on mixtures of the embeddings of the two prompts (EAP-IG, Hanna et al. 2024,
    arXiv:2403.17806), and Δ stays the difference of the two runs. Σ over the units of the embedding is the difference
    of the metric between the two runs (completeness). It costs `steps` passes.

    of="activations" mixes the value itself, all units of one address and layer together, as in Marks et al. 2024
    (arXiv:2403.19647). Σ over these units is the effect of patching all of them (completeness). It costs `steps` passes
    for each address and layer.

    Args:
      of: what is mixed.
      steps: the number m of gradients.
      rule: where on the path they are taken, see `Rule`.
      inputs: the address of the embeddings, for of="inputs".
    """

    of: Literal["inputs", "activations"] = "inputs"
    steps: int = 16
    rule: Rule = "midpoint"
    inputs: str = "embed"

    def __post_init__(self):
        if self.of not in ("inputs", "activations") or self.rule not in get_args(Rule):
            raise UserError(
                f"of={self.of!r}, rule={self.rule!r}: choose of= inputs or activations, rule= midpoint or left"
            )
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: there must be at least one")

    @property
    def weights(self) -> np.ndarray:
        """The weight of the other value at each step."""
        k = np.arange(self.steps)
        return (k + 0.5) / self.steps if self.rule == "midpoint" else 1 - k / self.steps

    def estimate(
        self, model: Model, contrast: Contrast, nodes: Nodes, others: Mapping[str, Array]
    ) -> Float[Array, "prompt unit"]:
        deltas = differences(model, contrast, nodes, others)
        weights = jnp.asarray(self.weights, jnp.float32)
        if self.of == "inputs":
            ends = values_at(model, self.inputs)(contrast.corrupted, **inputs_of(model, contrast))[self.inputs]

            def at_weight(weight: Array) -> Array:
                mixed = edit(model, at(self.inputs, Mix(1 - weight, ends)))
                return unit_gradients(lambda edits: edit(mixed, *edits), contrast, nodes, deltas)

            return mean_over(at_weight, weights)
        group, n = groups(nodes)

        def of_group(i: Array) -> Array:
            zero = no_shift(contrast, nodes, deltas)
            here = zero + (jnp.asarray(group)[None] == i).astype(zero.dtype)
            shift = lambda weight: weight.astype(zero.dtype) * here
            gradient = lambda weight: unit_gradients(
                lambda edits: edit(model, *edits), contrast, nodes, deltas, shift(weight)
            )
            return here * mean_over(gradient, weights)

        return summed(of_group, jnp.arange(n))


def differences(
    model: Model, contrast: Contrast, nodes: Nodes, others: Mapping[str, Array]
) -> dict[str, Float[Array, "*layer batch ..."]]:
    """Δ by address: the other value minus the value in the run on the clean prompts, in float32 at least."""
    own = values_at(model, *nodes.addresses)(contrast.clean, **inputs_of(model, contrast))

    def minus(other: Array, value: Array) -> Array:
        return jnp.broadcast_to(wide(other).astype(wide(value).dtype), value.shape) - wide(value)

    found = {}
    for value in nodes.values:
        other, mine = others[value.address], own[value.address]
        by_layer = value.has_layer_axis and other.ndim > 0
        found[value.address] = jax.vmap(minus)(other, mine) if by_layer else minus(other, mine)
    return found


def unit_gradients(
    edited: Callable[[list[Edit]], Model],
    contrast: Contrast,
    nodes: Nodes,
    deltas: Mapping[str, Array],
    shift: Float[Array, "prompt unit"] | None = None,
) -> Float[Array, "prompt unit"]:
    """Σ Δ · ∂m/∂value for each unit and prompt, from one backward pass.

    Each unit gets the edit `value + shift · Δ`. The gradient in its shift is the sum.

    Args:
      edited: the model with some edits.
      contrast: the clean prompts are run.
      nodes: the units.
      deltas: Δ by address.
      shift: where the gradient is taken. None: 0.
    """

    def total(shift: Array) -> Array:
        return jnp.sum(measure(edited(shift_edits(nodes, shift, deltas)), contrast.clean, contrast))

    return jax.grad(total)(no_shift(contrast, nodes, deltas) if shift is None else shift)


def no_shift(contrast: Contrast, nodes: Nodes, deltas: Mapping[str, Array]) -> Float[Array, "prompt unit"]:
    """A shift of 0 for every unit and prompt, in the widest dtype of the differences."""
    dtype = max((delta.dtype for delta in deltas.values()), key=lambda dtype: dtype.itemsize, default=jnp.float32)
    return jnp.zeros((contrast.clean.shape[0], nodes.size), dtype)


def shift_edits(nodes: Nodes, shift: Float[Array, "prompt unit"], deltas: Mapping[str, Array]) -> list[Edit]:
    """The edits `value + shift · Δ`."""
    parts = nodes.split(shift)

    def one(value: NodeValue) -> Edit:
        fn = Add(deltas[value.address], value.expanded(parts[value.address], True))
        return at(value.address, Each(fn) if value.has_layer_axis else fn)  # type: ignore[return-value]

    return [one(value) for value in nodes.values]


def groups(nodes: Nodes) -> tuple[np.ndarray, int]:
    """(for each unit the number of its address and layer, how many there are)."""
    found, n = [], 0
    for value in nodes.values:
        layers = len(value.layers or ()) if value.has_layer_axis else 1
        of_value = np.prod(value.unit_shape, dtype=int) // layers
        found.append(np.repeat(np.arange(n, n + layers), of_value))
        n += layers
    return np.concatenate(found), n


def mean_over(fn: Callable[[Array], Array], points: Array) -> Array:
    """The mean of fn(point), one after the other."""
    return summed(fn, points) / points.shape[0]


def summed(fn: Callable[[Array], Array], points: Array) -> Array:
    """Σ fn(point), one after the other: the memory does not grow with the number of points."""
    shape = jax.eval_shape(fn, points[0])
    total, _ = jax.lax.scan(lambda total, point: (total + fn(point), None), jnp.zeros(shape.shape, shape.dtype), points)
    return total
