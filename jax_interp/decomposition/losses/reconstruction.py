"""Reconstruction: with components masked, the model does what the target does."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.decomposition.losses.scene import Scene
from jax_interp.decomposition.masks import Mask, bernoulli_routes, given, routed, stochastic, subset_routes
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.surgery import iter_segments


def averaged(samples: int, key: Array, loss: Any) -> Float[Array, ""]:
    """The mean of `loss(key)` over so many keys."""
    keys = [jax.random.fold_in(key, i) for i in range(samples)]
    return sum((loss(k) for k in keys), jnp.zeros(())) / samples


def layerwise(scene: Scene, masks: dict[str, Mask]) -> Float[Array, ""]:
    """The mean over matrices of the error with that one masked and all others the target's."""
    total, count = jnp.zeros(()), 0
    for name, mask in masks.items():
        if not is_stacked(name):
            total, count = total + scene.error({name: mask}), count + 1
            continue
        depth = mask.components.shape[0]
        if not any(segment.stacked for segment in iter_segments(scene.model)):  # each layer is a place of its own
            for layer in range(depth):
                one_layer = jax.tree.map(lambda m, at=layer: m[at] if m.ndim else m, mask)
                total = total + scene.error({name.replace("*", str(layer), 1): one_layer})
            count += depth
            continue
        layers = jnp.arange(depth, dtype=jnp.int32)

        def one(layer, name=name, mask=mask, layers=layers):
            on = jnp.broadcast_to(
                jnp.expand_dims(layers == layer, range(1, mask.components.ndim - 1)), mask.components.shape[:-1]
            )
            return scene.error(routed({name: mask}, {name: on}))

        total, count = total + jnp.sum(jax.lax.map(one, layers)), count + depth
    return total / count


@dataclasses.dataclass(frozen=True)
class StochasticReconstruction:
    """All matrices masked at once by m = g + (1 - g) r."""

    coefficient: float = 1.0
    samples: int = 1

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        return averaged(self.samples, key, lambda key: scene.error(_drawn(scene, key)))


@dataclasses.dataclass(frozen=True)
class StochasticLayerwise:
    """One matrix at a time, the mean over matrices; a draw of its own."""

    coefficient: float = 1.0
    samples: int = 1

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        return averaged(self.samples, key, lambda key: layerwise(scene, _drawn(scene, key)))


@dataclasses.dataclass(frozen=True)
class StochasticSubset:
    """A random subset of the matrices masked at each row: of uniform size, or each by itself with `probability`."""

    coefficient: float = 0.5
    samples: int = 1
    routing: Literal["uniform_k_subset", "static_probability"] = "uniform_k_subset"
    probability: float = 0.5

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        def one(key: Array) -> Float[Array, ""]:
            draw, route = jax.random.split(key)
            return scene.error(routed(_drawn(scene, draw), self.routes(scene, route)))

        return averaged(self.samples, key, one)

    def routes(self, scene: Scene, key: Array) -> dict[str, Array]:
        lower = scene.importance.lower
        if self.routing == "uniform_k_subset":
            return subset_routes(key, lower)
        return bernoulli_routes(key, lower, self.probability)


@dataclasses.dataclass(frozen=True)
class Unmasked:
    """All components on, Δ left out."""

    coefficient: float = 1.0

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        return scene.error(given({name: jnp.ones_like(g) for name, g in scene.importance.lower.items()}))


@dataclasses.dataclass(frozen=True)
class ImportanceMasked:
    """Masks equal to the importances, Δ left out. As a training loss it rewards importances that carry values."""

    coefficient: float = 1.0

    def __call__(self, scene: Scene, key: Array, sources: Any = None) -> Float[Array, ""]:
        return scene.error(given(scene.importance.lower))


def _drawn(scene: Scene, key: Array) -> dict[str, Mask]:
    return stochastic(key, scene.importance.lower, delta=scene.delta, sampling=scene.sampling)
