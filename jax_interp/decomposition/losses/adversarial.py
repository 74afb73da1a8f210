"""Reconstruction under the worst masks that the importances allow: fresh, persistent, or mixed with random masks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.losses.adversaries import AdamAdversary, Adversary, init_sources, pgd
from jax_interp.decomposition.losses.base import LOSSES, Loss, LossInputs
from jax_interp.decomposition.masks import Mask, masks_from_sources, route_masks, subset_routes
from jax_interp.decomposition.matrices import is_stacked


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class PGDReconstruction(Loss):
    """The error under a fresh adversary, which starts a new sign ascent on the sources for every batch.

    The gradient of the loss treats the resulting sources as constants.

    steps, step_size: the number of ascent steps and their size.
    init: the sources before the first step.
    scope: the rows that share sources, see `source_shape`.
    subset: mask a random subset of the matrices at each row. The subset does not change during the ascent.
    """

    coefficient: float = 1.0
    steps: int = 20
    step_size: float = 0.1
    init: Literal["random", "ones", "zeros"] = "random"
    scope: Literal["unique_per_datapoint", "shared_across_batch"] = "shared_across_batch"
    subset: bool = False

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        for_sources, for_routes = jax.random.split(key)
        routes = subset_routes(for_routes, inputs.lower) if self.subset else None

        def error(inputs: LossInputs, r: PerMatrix) -> Float[Array, ""]:
            masks = masks_from_sources(inputs.lower, r)
            return inputs.error(masks if routes is None else route_masks(masks, routes))

        constant = inputs.stop_gradient()
        r = init_sources(for_sources, inputs.lower, self.init, self.scope, inputs.settings.delta)
        r = pgd(lambda r: error(constant, r), r, self.steps, self.step_size)
        return error(inputs, jax.lax.stop_gradient(r))


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class PersistentPGD(Loss):
    """The error under a persistent adversary's masks (VPD 2026).

    The adversary takes its last step on a batch along the gradient of this loss with respect to the sources.

    adversary: the adversary. Its sources are in the training state.
    subset: mask a random subset of the matrices at each row.
    """

    coefficient: float = 0.5
    adversary: Adversary = dataclasses.field(default_factory=AdamAdversary)
    subset: bool = False

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        assert sources is not None
        masks = masks_from_sources(inputs.lower, self.adversary.values(sources, inputs.lower))
        return inputs.error(route_masks(masks, subset_routes(key, inputs.lower)) if self.subset else masks)


@LOSSES.register
@reads_older_files(called=("Merged",))
@dataclasses.dataclass(frozen=True)
class MixedReconstruction(Loss):
    """The error under masks that are adversarial for some examples and stochastic for the others, in one forward pass
    (the JAX code of 2026).

    adversarial: the probability that an example gets the persistent adversary's masks.
    adversary: the adversary. Its sources are in the training state.
    subset: for examples with stochastic masks, mask a random subset of the matrices at each row.
    """

    coefficient: float = 1.0
    adversarial: float = 0.5
    adversary: Adversary = dataclasses.field(default_factory=lambda: AdamAdversary(scope="broadcast_across_batch"))
    subset: bool = False
    metric: ClassVar[str | None] = "Merged"  # the name of this term in the logs of existing runs

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        assert sources is not None
        for_masks, for_examples = jax.random.split(key)
        worst = masks_from_sources(inputs.lower, self.adversary.values(sources, inputs.lower))
        drawn = inputs.stochastic_masks(for_masks)
        if self.subset:
            drawn = route_masks(drawn, subset_routes(jax.random.fold_in(key, 2), inputs.lower))
        on = jax.random.bernoulli(for_examples, self.adversarial, inputs.output.shape[:1])
        return inputs.error({name: _select(on, worst[name], drawn[name], name) for name in inputs.lower})


def _select(on: Array, one: Mask, other: Mask, name: str) -> Mask:
    """The first mask for examples that are on, the second for the rest."""
    stacked = is_stacked(name)

    def select(a: Array, b: Array) -> Array:
        if not a.ndim:
            return a
        at = jnp.expand_dims(on, [*([0] if stacked else []), *range(1 + stacked, a.ndim)])
        return jnp.where(at, a, b)

    return Mask(select(one.components, other.components), select(one.delta, other.delta))
