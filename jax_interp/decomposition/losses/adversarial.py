"""Reconstruction under the worst masks that importances allow: PGD, persistent PGD, and merged."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.losses.adversary import Adversary, held, pgd, started
from jax_interp.decomposition.losses.reconstruction import StochasticSubset
from jax_interp.decomposition.losses.scene import Scene
from jax_interp.decomposition.masks import Mask, between, routed, stochastic
from jax_interp.decomposition.matrices import is_stacked


@dataclasses.dataclass(frozen=True)
class PGDReconstruction:
    """Fresh sources at every batch: `steps` of size `step_size` along the gradient's sign. With `subset` at each row a
    random subset of the matrices is masked, the same all through the ascent."""

    coefficient: float = 1.0
    steps: int = 20
    step_size: float = 0.1
    init: Literal["random", "ones", "zeros"] = "random"
    scope: Literal["unique_per_datapoint", "shared_across_batch"] = "shared_across_batch"
    subset: bool = False

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        start, route = jax.random.split(key)
        routes = StochasticSubset().routes(scene, route) if self.subset else None

        def error(scene: Scene, r: PerMatrix) -> Float[Array, ""]:
            masks = between(scene.importance.lower, r)
            return scene.error(masks if routes is None else routed(masks, routes))

        still = held(scene)
        r = started(start, scene.importance.lower, self.init, self.scope, scene.delta)
        r = pgd(lambda r: error(still, r), r, self.steps, self.step_size)
        return error(scene, jax.lax.stop_gradient(r))


@dataclasses.dataclass(frozen=True)
class PersistentPGD:
    """Under a persistent adversary's masks, of all matrices or (`subset`) of a random subset at each row.

    `sources` are the adversary's raw values: the gradient with respect to them is what its outer step climbs along.
    """

    coefficient: float = 0.5
    adversary: Adversary = dataclasses.field(default_factory=Adversary)
    subset: bool = False

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        lower = scene.importance.lower
        masks = between(lower, self.adversary.values(sources, lower))
        return scene.error(routed(masks, StochasticSubset().routes(scene, key)) if self.subset else masks)


@dataclasses.dataclass(frozen=True)
class Merged:
    """One forward for both: each example is masked by the persistent adversary with probability `adversarial`, and
    stochastically otherwise (the 2026 JAX line); with `subset` then at each row a random subset of the matrices."""

    coefficient: float = 1.0
    adversarial: float = 0.5
    adversary: Adversary = dataclasses.field(default_factory=lambda: Adversary(scope="broadcast_across_batch"))
    subset: bool = False

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        draw, pick = jax.random.split(key)
        lower: PerMatrix = scene.importance.lower
        worst = between(lower, self.adversary.values(sources, lower))
        drawn = stochastic(draw, lower, delta=scene.delta, sampling=scene.sampling)
        if self.subset:
            drawn = routed(drawn, StochasticSubset().routes(scene, jax.random.fold_in(key, 2)))
        on = jax.random.bernoulli(pick, self.adversarial, scene.output.shape[:1])
        return scene.error({name: _chosen(on, worst[name], drawn[name], name) for name in lower})


def _chosen(on: Array, one: Mask, other: Mask, name: str) -> Mask:
    """The first mask for examples that are on, the other for the rest."""
    stacked = is_stacked(name)

    def pick(a: Array, b: Array) -> Array:
        if not a.ndim:
            return a
        at = jnp.expand_dims(on, [*([0] if stacked else []), *range(1 + stacked, a.ndim)])
        return jnp.where(at, a, b)

    return Mask(pick(one.components, other.components), pick(one.delta, other.delta))
