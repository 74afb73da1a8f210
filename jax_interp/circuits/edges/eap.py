"""Edge attribution patching: the effects of ablating all edges, estimated from gradients at the inputs of the targets.

The four methods differ in where the gradient is taken. It is multiplied by the same difference of the sources.

    EAP             at the clean run (Syed et al. 2023, arXiv:2310.10348)
    EAPIG           averaged over runs whose embeddings lie between corrupted and clean (Hanna et al. 2024,
                    arXiv:2403.17806)
    IGActivations   averaged over runs in which the output of one source lies between corrupted and clean (Hanna et al.;
                    Marks et al. 2024, arXiv:2403.19647)
    CleanCorrupted  averaged over the clean and the corrupted run (Hanna et al.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.circuits.circuit_run import source_values
from jax_interp.circuits.contrast import Contrast
from jax_interp.circuits.edges.input_gradients import (
    differences,
    gradients_and_values,
    order_of,
    products,
    rows_in_stretches,
)
from jax_interp.circuits.edges.scores import METHODS, EdgeMethod
from jax_interp.circuits.graph import Graph
from jax_interp.circuits.stretches import Stretch, stretches
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations, Add, Address, Each, Edit, Replace, at, depth_of
from jax_interp.surgery.contract import Model

Rule = Literal["left", "right", "midpoint"]
"""Which fractions k/m of the way from corrupted to clean are taken: k = 0..m-1, k = 1..m, or k = 1/2..m-1/2."""


def fractions(steps: int, rule: Rule) -> Float[np.ndarray, " step"]:
    """The fractions of the way from the corrupted (0) to the clean (1) run.

    Raises:
      UserError: `steps` is less than 1, or `rule` is unknown.
    """
    offsets = {"left": 0.0, "right": 1.0, "midpoint": 0.5}
    if rule not in offsets:
        raise UserError(f"rule={rule!r}: choose from {', '.join(offsets)}")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UserError(f"steps={steps!r} must be an integer, at least 1")
    return (np.arange(steps) + offsets[rule]) / steps


@METHODS.register
@dataclasses.dataclass(frozen=True)
class EAP(EdgeMethod):
    """Edge attribution patching: the gradient at the clean run, one forward and one backward pass for all edges."""

    def scores(
        self, model: Model, contrast: Contrast, graph: Graph, ablated: Activations | None
    ) -> Float[Array, "prompt target source"]:
        gradients, own = gradients_and_values(model, contrast, contrast.clean, graph, values=True)
        assert own is not None
        return products(graph, differences(contrast, graph, own, _ablated(model, contrast, graph, ablated)), gradients)


@METHODS.register
@dataclasses.dataclass(frozen=True)
class EAPIG(EdgeMethod):
    """EAP with integrated gradients over the inputs: the mean gradient at `steps` interpolated embeddings.

    The scores of the edges from "input" sum to m(corrupted) - m(clean) as the number of steps grows.

    Args:
      steps: the number of runs. The reference code uses 5 in its examples and 30 elsewhere.
      rule: which fractions are taken. "left" is the published choice: it includes the corrupted input and not the clean
        one.
    """

    steps: int = 5
    rule: Rule = "left"

    def __post_init__(self):
        fractions(self.steps, self.rule)

    def scores(
        self, model: Model, contrast: Contrast, graph: Graph, ablated: Activations | None
    ) -> Float[Array, "prompt target source"]:
        own, other = (
            source_values(model, graph, contrast.clean, contrast.mask),
            _ablated(model, contrast, graph, ablated),
        )
        difference = _input_difference(graph, own, other)

        def gradients(fraction: Array) -> dict[str, Array]:
            moved = at("embed", Add((1 - fraction) * difference))
            assert isinstance(moved, Edit)
            return gradients_and_values(model, contrast, contrast.clean, graph, moved)[0]

        mean = _mean_over(gradients, fractions(self.steps, self.rule), difference.dtype)
        return products(graph, differences(contrast, graph, own, other), mean)


@METHODS.register
@dataclasses.dataclass(frozen=True)
class CleanCorrupted(EdgeMethod):
    """The mean of the gradients at the clean and at the corrupted run."""

    def scores(
        self, model: Model, contrast: Contrast, graph: Graph, ablated: Activations | None
    ) -> Float[Array, "prompt target source"]:
        gradients, own = gradients_and_values(model, contrast, contrast.clean, graph, values=True)
        others, other = gradients_and_values(model, contrast, contrast.corrupted, graph, values=True)
        assert own is not None
        assert other is not None
        mean = jax.tree.map(lambda a, b: (upcast(a) + upcast(b)) / 2, gradients, others)
        return products(graph, differences(contrast, graph, own, other if ablated is None else ablated), mean)


@METHODS.register
@dataclasses.dataclass(frozen=True)
class IGActivations(EdgeMethod):
    """EAP with integrated gradients over activations: the output of one source group is interpolated at a time.

    A group is the input, all heads of a layer together, or an MLP, so there are (2 layers + 1) · steps runs.

    Args:
      steps: the number of runs for each group.
      pooled: False (the formula of the paper): an edge uses the gradients of the runs in which its own source is
        interpolated. True (the code of EAP-IG): all edges use the mean gradient of all runs.
      rule: as in `EAPIG`. The reference code uses "right" here.
    """

    steps: int = 5
    pooled: bool = False
    rule: Rule = "right"

    def __post_init__(self):
        fractions(self.steps, self.rule)

    def scores(
        self, model: Model, contrast: Contrast, graph: Graph, ablated: Activations | None
    ) -> Float[Array, "prompt target source"]:
        own = source_values(model, graph, contrast.clean, contrast.mask)
        other = _ablated(model, contrast, graph, ablated)
        difference, taken = differences(contrast, graph, own, other), fractions(self.steps, self.rule)
        parts, layers, first = [], 0, 0
        for stretch in stretches(graph.sources):
            between = _between(stretch, own, other, depth_of(model))
            rows = difference[first : first + stretch.rows.size]
            rows, first = rows.reshape(len(stretch.layers), -1, *rows.shape[1:]), first + stretch.rows.size

            def of_layer(i: Array, between=between, rows=rows) -> Any:
                run = lambda fraction: gradients_and_values(
                    model, contrast, contrast.clean, graph, between(fraction, i)
                )[0]
                mean = _mean_over(run, taken, difference.dtype)
                return mean if self.pooled else _products_in_stretches(graph, rows[i], mean)

            parts.append(jax.lax.map(of_layer, jnp.arange(len(stretch.layers))))
            layers += len(stretch.layers)
        if self.pooled:
            total = jax.tree.map(lambda *leaves: sum(jnp.sum(leaf, axis=0) for leaf in leaves) / layers, *parts)
            return products(graph, difference, total)
        joined = [jnp.moveaxis(part, 0, -2).reshape(*part.shape[1:3], -1) for part in parts]  # [prompt, target, source]
        return jnp.concatenate(joined, axis=-1)[:, order_of(graph.targets)][:, :, order_of(graph.sources)]


def _between(stretch: Stretch, own: Activations, other: Activations, depth: int) -> Callable[[Array, Array], Edit]:
    """`between(fraction, i)`: the values of layer i of a stretch lie between ablated (0) and own (1) values."""
    name, before = Address.parse(stretch.address).name, stretch.layers.start
    clean = upcast(own[stretch.address])
    corrupted = jnp.broadcast_to(upcast(other[stretch.address]), clean.shape)
    is_input = stretch.axis is None and stretch.rows[0, 0] == 0
    outside = lambda leaf: jnp.pad(leaf, ((before, depth - stretch.layers.stop), *((0, 0),) * (leaf.ndim - 1)))

    def between(fraction: Array, i: Array) -> Edit:
        if is_input:
            made = at("embed", Add((1 - fraction) * (corrupted - clean)[0]))
        else:
            values = fraction * clean + (1 - fraction) * corrupted
            made = at(f"blocks.{name}", Each(Replace(outside(values))), layer=i + before)
        assert isinstance(made, Edit)
        return made

    return between


def _products_in_stretches(graph: Graph, difference: Array, gradients: dict[str, Array]) -> Array:
    rows = rows_in_stretches(graph.targets, gradients)
    return jnp.einsum("tbpd,sbpd->bts", rows, difference.astype(rows.dtype))


def _mean_over(gradients, taken: Float[np.ndarray, " step"], dtype) -> dict[str, Array]:
    """The mean of `gradients(fraction)`, one run at a time, in float32 at least."""
    at_fraction = lambda fraction: jax.tree.map(upcast, gradients(fraction))
    values = jnp.asarray(taken, dtype)
    total = at_fraction(values[0])
    if len(taken) > 1:
        step = lambda total, fraction: (jax.tree.map(jnp.add, total, at_fraction(fraction)), None)
        total, _ = jax.lax.scan(step, total, values[1:])
    return jax.tree.map(lambda leaf: leaf / len(taken), total)


def _ablated(model: Model, contrast: Contrast, graph: Graph, ablated: Activations | None) -> Activations:
    return source_values(model, graph, contrast.corrupted, contrast.mask) if ablated is None else ablated


def _input_difference(graph: Graph, own: Activations, other: Activations) -> Float[Array, "prompt pos d_model"]:
    """ablated - own value of the source "input"."""
    address = stretches(graph.sources)[0].address
    value = upcast(own[address])
    return (jnp.broadcast_to(upcast(other[address]), value.shape) - value)[0]
