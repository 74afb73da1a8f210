"""The adversary: sources r of the masks m = g + (1 - g) r, moved to where the masked model is worst.

A fresh adversary starts anew at every batch and steps along the sign of the gradient (`pgd`). A persistent one
(`Adversary`) keeps its sources in the training state and climbs by Adam. `scope` says what sources may differ by: a
per-row adversary is too strict where circuits share weights, for it keeps all noise of one sign; one shared across the
batch is what is reported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.losses.scene import Scene
from jax_interp.decomposition.matrices import row_axes

Scope = Literal[
    "unique_per_datapoint",
    "shared_across_batch",
    "single_source",
    "broadcast_across_batch",
    "repeat_across_batch",
    "per_batch_per_position",
]


def source_shape(g: Array, name: str, scope: Scope, delta: bool, repeat: int = 1) -> tuple[int, ...]:
    """The shape of one entry's sources for importances like `g`: one for each row ("unique_per_datapoint", also called
    "per_batch_per_position"), one for all rows ("shared_across_batch", "single_source"), one for each position
    ("broadcast_across_batch"), or that for `repeat` examples, used again and again."""
    rows = tuple(g.shape[axis] for axis in row_axes(name, g))
    layer = g.shape[: g.ndim - 1 - len(rows)]
    if scope in ("shared_across_batch", "single_source"):
        rows = (1,) * len(rows)
    elif scope == "broadcast_across_batch":
        rows = (1, *rows[1:])
    elif scope == "repeat_across_batch":
        rows = (repeat, *rows[1:])
    return (*layer, *rows, g.shape[-1] + delta)


def spread(sources: PerMatrix, importance: PerMatrix) -> PerMatrix:
    """Sources of `repeat` examples tiled over the batch; others as they are."""
    found = {}
    for name, r in sources.items():
        axis = row_axes(name, r)[0]
        have, batch = r.shape[axis], importance[name].shape[axis]
        if have not in (1, batch):
            times = [1] * r.ndim
            times[axis] = -(-batch // have)
            r = jax.lax.slice_in_dim(jnp.tile(r, times), 0, batch, axis=axis)
        found[name] = r
    return found


def pgd(loss: Any, sources: PerMatrix, steps: int, step_size: float) -> PerMatrix:
    """`steps` times `r ← clip(r + step_size · sign(∂loss/∂r), 0, 1)`."""
    climb = lambda r, g: jnp.clip(r + step_size * jnp.sign(g), 0.0, 1.0)
    body = lambda _, r: jax.tree.map(climb, r, jax.grad(loss)(r))
    return jax.lax.fori_loop(0, steps, body, sources) if steps > 1 else body(0, sources) if steps else sources


def held(scene: Scene) -> Scene:
    """The scene as the adversary sees it: nothing but its sources is differentiated."""
    model, importance = jax.lax.stop_gradient((scene.model, scene.importance))
    return dataclasses.replace(scene, model=model, importance=importance)


def started(key: Array, importance: PerMatrix, init: str, scope: Scope, delta: bool, repeat: int = 1) -> PerMatrix:
    """Sources to begin with: "random" (uniform), "ones" or "zeros"."""
    found = {}
    for i, (name, g) in enumerate(importance.items()):
        shape = source_shape(g, name, scope, delta, repeat)
        if init == "random":
            found[name] = jax.random.uniform(jax.random.fold_in(key, i), shape)
        else:
            found[name] = jnp.full(shape, 1.0 if init == "ones" else 0.0)
    return found


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sources:
    """A persistent adversary's state: its raw sources, and Adam's two moments and count."""

    raw: PerMatrix
    first: PerMatrix
    second: PerMatrix
    count: Array


@dataclasses.dataclass(frozen=True)
class Adversary:
    """Sources that are kept from batch to batch and climb by Adam: `warm_up_steps` on the batch at hand before the
    loss, and one with the gradient of the loss itself. `rate_warm_up` is the fraction of the run over which their
    learning rate rises. `parametrisation` "sigmoid" keeps unbounded values, N(0, 1) to begin with.
    """

    scope: Literal["single_source", "broadcast_across_batch", "repeat_across_batch", "per_batch_per_position"] = (
        "per_batch_per_position"
    )
    repeat: int = 1
    learning_rate: float = 0.01
    b1: float = 0.5
    b2: float = 0.99
    rate_warm_up: float = 0.025
    warm_up_steps: int = 2
    parametrisation: Literal["clip", "sigmoid"] = "clip"

    def start(self, key: Array, importance: PerMatrix, delta: bool) -> Sources:
        """The state to begin with, for importances (or their types) of this shape."""
        r = started(key, importance, "random", self.scope, delta, self.repeat)
        if self.parametrisation == "sigmoid":
            r = {n: jax.random.normal(jax.random.fold_in(key, i), x.shape) for i, (n, x) in enumerate(r.items())}
        zeros = jax.tree.map(jnp.zeros_like, r)
        return Sources(r, zeros, zeros, jnp.zeros((), jnp.int32))

    def values(self, raw: PerMatrix, importance: PerMatrix) -> PerMatrix:
        """Sources in [0, 1], over the batch."""
        return spread(jax.tree.map(jax.nn.sigmoid, raw) if self.parametrisation == "sigmoid" else raw, importance)

    def climb(self, sources: Sources, grads: PerMatrix, progress: Float[Array, ""] | float) -> Sources:
        """One step of Adam upwards, then back into [0, 1]."""
        count = sources.count + 1
        t = count.astype(jnp.float32)
        rate = self.learning_rate
        if self.rate_warm_up:
            rate = rate * jnp.minimum(1.0, jnp.asarray(progress, jnp.float32) / self.rate_warm_up)
        first = jax.tree.map(lambda m, g: self.b1 * m + (1 - self.b1) * g, sources.first, grads)
        second = jax.tree.map(lambda v, g: self.b2 * v + (1 - self.b2) * g * g, sources.second, grads)

        def move(r: Array, m: Array, v: Array) -> Array:
            r = r + rate * (m / (1 - self.b1**t)) / (jnp.sqrt(v / (1 - self.b2**t)) + 1e-8)
            return r if self.parametrisation == "sigmoid" else jnp.clip(r, 0.0, 1.0)

        return Sources(jax.tree.map(move, sources.raw, first, second), first, second, count)

    def before(
        self, error: Callable[[Array, PerMatrix], Array], key: Array, sources: Sources, progress: Any
    ) -> Sources:
        """The sources after the warm-up steps; `error(key, raw)` is what they climb."""
        for i in range(self.warm_up_steps):
            grads = jax.grad(lambda raw, i=i: error(jax.random.fold_in(key, i + 1), raw))(sources.raw)
            sources = self.climb(sources, grads, progress)
        return jax.lax.stop_gradient(sources)
