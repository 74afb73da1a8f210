"""Adversaries: they search for the sources r of the masks m = g + (1 - g) r that make the masked model worst.

A fresh adversary starts again on every batch and steps along the sign of the gradient (`pgd`). A persistent adversary
(a subclass of `Adversary`) keeps its sources in the training state. `scope` says which rows share their sources. An
adversary with separate sources for each row is too strict if circuits share weights, because it can give all noise the
same sign. The metrics therefore use sources that are shared across the batch.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core.config_json import reads_older_files
from jax_interp.core.pytrees import register_dataclass
from jax_interp.core.registry import Registry
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.matrices import row_axes

PersistentScope = Literal["single_source", "broadcast_across_batch", "repeat_across_batch", "per_batch_per_position"]
Scope = Literal["unique_per_datapoint", "shared_across_batch"] | PersistentScope


class AdversaryState(Protocol):
    """The state of a persistent adversary: any pytree with the sources in a field `raw`."""

    @property
    def raw(self) -> PerMatrix: ...


class Adversary:
    """Base class of persistent adversaries. A subclass is a frozen dataclass.

    To add an adversary, write one file with a class registered in `ADVERSARIES`. The class has `init` and `climb`. It
    also has `values` if the raw sources are not the sources of the masks.

    Attributes:
      warm_up_steps: the number of ascent steps on each batch before the loss is computed. One more step follows, along
        the gradient of the loss.
    """

    warm_up_steps: int = 0

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], importance: PerMatrix, delta: bool) -> Any:
        """The initial state.

        Args:
          key: random key.
          importance: the importances of a batch, or their types. Only the shapes are used.
          delta: whether there is a Δ component, which needs one more source.
        """
        raise NotImplementedError

    def values(self, raw: PerMatrix, importance: PerMatrix) -> PerMatrix:
        """The sources of every row, in [0, 1], computed from the raw sources."""
        return tile_sources(raw, importance)

    @abc.abstractmethod
    def climb(self, state: Any, grads: PerMatrix, progress: Float[Array, ""] | float) -> Any:
        """The state after one ascent step along the gradient of the error with respect to the raw sources.

        Args:
          state: the state before.
          grads: the gradient.
          progress: step / steps of the run, from 0 to 1.
        """
        raise NotImplementedError

    def warm_up(
        self,
        error: Callable[[Array, PerMatrix], Array],
        key: Key[Array, ""],
        state: Any,
        progress: Float[Array, ""] | float,
    ) -> Any:
        """The state after `warm_up_steps` on this batch. It is a constant for gradients.

        Args:
          error: `error(key, raw)`, the error that the adversary maximises.
          key: random key; each step gets its own.
          state: the state before.
          progress: step / steps of the run.
        """
        for i in range(self.warm_up_steps):
            grads = jax.grad(lambda raw, i=i: error(jax.random.fold_in(key, i + 1), raw))(state.raw)
            state = self.climb(state, grads, progress)
        return jax.lax.stop_gradient(state)


ADVERSARIES = Registry("adversary", Adversary)


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Sources:
    """The state of `AdamAdversary`: the raw sources, Adam's two moments, and the number of steps."""

    raw: PerMatrix
    first: PerMatrix
    second: PerMatrix
    count: Array


@ADVERSARIES.register
@reads_older_files(called=("Adversary",))
@dataclasses.dataclass(frozen=True)
class AdamAdversary(Adversary):
    """A persistent adversary that climbs by Adam (persistent PGD, VPD 2026).

    scope: the rows that share sources, see `source_shape`.
    repeat: the number of examples with separate sources in the scope "repeat_across_batch".
    rate_warm_up: the fraction of the run over which the learning rate rises from 0.
    parametrisation: "clip": raw sources are clipped to [0, 1]. "sigmoid": raw sources are unbounded, start as N(0, 1)
      and go through a sigmoid.
    """

    scope: PersistentScope = "per_batch_per_position"
    repeat: int = 1
    learning_rate: float = 0.01
    b1: float = 0.5
    b2: float = 0.99
    rate_warm_up: float = 0.025
    warm_up_steps: int = 2
    parametrisation: Literal["clip", "sigmoid"] = "clip"

    def init(self, key: Key[Array, ""], importance: PerMatrix, delta: bool) -> Sources:
        r = init_sources(key, importance, "random", self.scope, delta, self.repeat)
        if self.parametrisation == "sigmoid":
            r = {n: jax.random.normal(jax.random.fold_in(key, i), x.shape) for i, (n, x) in enumerate(r.items())}
        zeros = jax.tree.map(jnp.zeros_like, r)
        return Sources(r, zeros, zeros, jnp.zeros((), jnp.int32))

    def values(self, raw: PerMatrix, importance: PerMatrix) -> PerMatrix:
        return tile_sources(jax.tree.map(jax.nn.sigmoid, raw) if self.parametrisation == "sigmoid" else raw, importance)

    def climb(self, state: Sources, grads: PerMatrix, progress: Float[Array, ""] | float) -> Sources:
        count = state.count + 1
        t = count.astype(jnp.float32)
        rate = self.learning_rate
        if self.rate_warm_up:
            rate = rate * jnp.minimum(1.0, jnp.asarray(progress, jnp.float32) / self.rate_warm_up)
        first = jax.tree.map(lambda m, g: self.b1 * m + (1 - self.b1) * g, state.first, grads)
        second = jax.tree.map(lambda v, g: self.b2 * v + (1 - self.b2) * g * g, state.second, grads)

        def move(r: Array, m: Array, v: Array) -> Array:
            r = r + rate * (m / (1 - self.b1**t)) / (jnp.sqrt(v / (1 - self.b2**t)) + 1e-8)
            return r if self.parametrisation == "sigmoid" else jnp.clip(r, 0.0, 1.0)

        return Sources(jax.tree.map(move, state.raw, first, second), first, second, count)


def source_shape(g: Array, name: str, scope: Scope, delta: bool, repeat: int = 1) -> tuple[int, ...]:
    """The shape of one matrix's sources, `[*layer, *rows, C (+ 1 with delta)]`.

    Args:
      g: importances `[*layer, *rows, C]`, or their type.
      name: the matrix's entry.
      scope: "unique_per_datapoint" or "per_batch_per_position": each row has its own sources. "shared_across_batch" or
        "single_source": all rows share them. "broadcast_across_batch": each position has its own.
        "repeat_across_batch": each position of `repeat` examples has its own, and they are tiled over the batch.
      delta: whether Δ has a source too.
      repeat: the number of examples with separate sources in the scope "repeat_across_batch".
    """
    rows = tuple(g.shape[axis] for axis in row_axes(name, g))
    layer = g.shape[: g.ndim - 1 - len(rows)]
    if scope in ("shared_across_batch", "single_source"):
        rows = (1,) * len(rows)
    elif scope == "broadcast_across_batch":
        rows = (1, *rows[1:])
    elif scope == "repeat_across_batch":
        rows = (repeat, *rows[1:])
    return (*layer, *rows, g.shape[-1] + delta)


def init_sources(
    key: Key[Array, ""],
    importance: PerMatrix,
    init: Literal["random", "ones", "zeros"],
    scope: Scope,
    delta: bool,
    repeat: int = 1,
) -> PerMatrix:
    """Initial sources of every matrix: uniform in [0, 1], ones or zeros. See `source_shape` for the arguments."""
    found = {}
    for i, (name, g) in enumerate(importance.items()):
        shape = source_shape(g, name, scope, delta, repeat)
        if init == "random":
            found[name] = jax.random.uniform(jax.random.fold_in(key, i), shape)
        else:
            found[name] = jnp.full(shape, 1.0 if init == "ones" else 0.0)
    return found


def tile_sources(sources: PerMatrix, importance: PerMatrix) -> PerMatrix:
    """Tile the sources of a few examples over the batch. Sources of one example are not tiled; they broadcast."""
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


def pgd(loss: Callable[[PerMatrix], Array], sources: PerMatrix, steps: int, step_size: float) -> PerMatrix:
    """Projected gradient ascent: `steps` times `r ← clip(r + step_size · sign(∂loss/∂r), 0, 1)`."""
    climb = lambda r, g: jnp.clip(r + step_size * jnp.sign(g), 0.0, 1.0)
    body = lambda _, r: jax.tree.map(climb, r, jax.grad(loss)(r))
    return jax.lax.fori_loop(0, steps, body, sources) if steps > 1 else body(0, sources) if steps else sources
