"""Measure weight linearity: compute a `LinearityReport`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast_leaves
from jax_interp.core.leaves import PyTree
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.linearity.masked_function import (
    MaskedForward,
    MaskedFunction,
    WeightParts,
    importance_matrix,
    mask_decomposition,
    mask_weights,
)
from jax_interp.decomposition.linearity.report import Figure, LinearityReport, ratio

EXACT_UP_TO = 12  # the largest number of parts below full importance for which all on/off patterns are tried


@dataclasses.dataclass(frozen=True)
class LinearitySettings:
    """How many samples and steps the measurement uses.

    samples: the number of random masks.
    ks: the numbers k of other parts (`subset`) or other rows (`union`) that are added to the needed parts.
    adversary_steps: the numbers of ascent steps. The step size is 2 / steps.
    pairs: the number of random pairs of parts for interactions. All pairs are used if there are fewer.
    """

    samples: int = 16
    ks: Sequence[int] = (1, 2, 4, 8)
    adversary_steps: Sequence[int] = (20, 80)
    pairs: int = 256


def weight_linearity(
    f: Callable[[PyTree, Array], Array],
    components: WeightParts,
    importance: Float[Array, "row part"],
    data: Float[Array, "row ..."],
    oracle: tuple[WeightParts, Float[Array, "row part"]] | None = None,
    *,
    key: Key[Array, ""] | None = None,
    threshold: float = 0.0,
    settings: LinearitySettings = LinearitySettings(),
) -> LinearityReport:
    """The linearity report for parts of the weights of any function.

    Args:
      f: `f(theta, x)` with x `[row, ...]`.
      components: the weights and their parts.
      importance: how much each part is needed on each row, from 0 to 1.
      data: inputs.
      oracle: the parts that are known to be right, and their importances. The report then also has the excess of each
        error over the oracle's.
      key, threshold, settings: see `linearity`.

    Example:
        parts = WeightParts(5 * jnp.eye(2), 5 * jnp.einsum("ci,cj->cij", v, v))
        report = weight_linearity(lambda theta, x: x @ theta.T, parts, jnp.eye(3), v)
        print(report)
    """
    measure = partial(linearity, data=data, key=key, threshold=threshold, settings=settings)
    report = measure(mask_weights(f, components), importance)
    return report if oracle is None else report.with_excess(measure(mask_weights(f, oracle[0]), oracle[1]))


def decomposition_linearity(
    model: Decomposed,
    importance: PerMatrix,
    data: Array,
    *,
    delta: bool = False,
    key: Key[Array, ""] | None = None,
    threshold: float = 0.0,
    settings: LinearitySettings = LinearitySettings(),
) -> LinearityReport:
    """The linearity report for the subcomponents of a decomposed model.

    Args:
      model: the decomposed model.
      importance: lower importances on `data`.
      data: inputs.
      delta: whether the Δ of each matrix is a part. Its importance is 0.
      key, threshold, settings: see `linearity`.
    """
    parts = mask_decomposition(model, delta=delta)
    matrix = importance_matrix(model, importance, delta=delta)
    return linearity(parts, matrix, data, key=key, threshold=threshold, settings=settings)


def linearity(
    parts: MaskedFunction,
    importance: Float[Array, "row part"],
    data: Array,
    *,
    key: Key[Array, ""] | None = None,
    threshold: float = 0.0,
    settings: LinearitySettings = LinearitySettings(),
) -> LinearityReport:
    """Compute the `LinearityReport` of a function and its parts.

    Args:
      parts: a function and its parts.
      importance: how much each part is needed on each row, from 0 to 1.
      data: inputs, one for each row.
      key: random key; None: key 0.
      threshold: a part is needed on a row if its importance there is above this.
      settings: how many samples and steps the measurement uses.

    Raises:
      UserError: there is no data, or the importances do not have one row for each input and one column for each part.
    """
    g, data = jnp.asarray(importance, jnp.float32), upcast_leaves(data)
    if not data.shape[0]:
        raise UserError("linearity is measured on at least one row of data")
    if g.shape != (data.shape[0], parts.count):
        raise UserError(f"importance has shape {g.shape}: {data.shape[0]} rows of data, {parts.count} parts")
    keys = iter(jax.random.split(jax.random.key(0) if key is None else key, 16))
    right = parts.target(data)
    size = float(jnp.mean(_square(right)))
    measured = _Measurement(parts, g, data, (g > threshold).astype(jnp.float32), right, size, settings.samples)
    # called in the order of their random keys
    adversarial = measured.adversarial([next(keys), next(keys)], settings.adversary_steps)
    resample = measured.resample(next(keys)) if parts.forward.can_resample else None
    interaction_mean, interaction_max = measured.interactions(settings.pairs, next(keys))
    random_others = measured.random_others([next(keys) for _ in range(3)], settings.ks)
    scrub, anti = measured.scrub(next(keys)), measured.anti_scrub(next(keys))
    on = np.asarray(measured.needed)
    return LinearityReport(
        faithfulness=dict(parts.faithfulness),
        all_on=measured.error(jnp.ones_like(g)),
        strict=measured.error(measured.needed),
        **random_others,
        adversarial=adversarial,
        exact=measured.exact(),
        resample=resample,
        scrub=scrub,
        anti=anti,
        l0=float(on.sum(axis=1).mean()),
        rank=int(parts.ranks.sum()),
        mdl=float((on * (math.log2(max(parts.count, 1)) + parts.ranks[None])).sum(axis=1).mean()),
        interaction_mean=interaction_mean,
        interaction_max=interaction_max,
    )


@dataclasses.dataclass(frozen=True)
class _Measurement:
    """One decomposition on one batch: the importances g, the needed parts, the right output and its mean square."""

    parts: MaskedFunction
    g: Float[Array, "row part"]
    data: Array
    needed: Float[Array, "row part"]
    right: Array
    size: float
    samples: int

    def figure(self, raw: float | Array) -> Figure:
        return Figure(float(raw), ratio(float(raw), self.size))

    def raw_error(self, mask: Array) -> Array:
        return _error(self.parts.forward, mask, self.data, self.right)

    def error(self, mask: Array) -> Figure:
        return self.figure(self.raw_error(mask))

    def mean_error(self, key: Array, mask_of: Callable[[Array], Array]) -> Figure:
        """The mean error under `samples` random masks."""
        total = sum(float(self.raw_error(mask_of(k))) for k in jax.random.split(key, self.samples))
        return self.figure(total / self.samples)

    def uniform(self, key: Array) -> Array:
        return jax.random.uniform(key, self.g.shape)

    def half(self, key: Array) -> Array:
        return (self.uniform(key) < 0.5).astype(jnp.float32)

    def random_others(self, keys: Sequence[Array], ks: Sequence[int]) -> dict[str, Any]:
        """The errors `stochastic`, `subset` and `union`."""
        g, needed = self.g, self.needed
        subset_keys, union_keys = (jax.random.split(key, len(ks)) for key in keys[1:])
        return {
            "stochastic": self.mean_error(keys[0], lambda k: g + (1 - g) * self.uniform(k)),
            "subset": {
                k: self.mean_error(own, lambda key, k=k: _with_others(needed, self.uniform(key), k))
                for k, own in zip(ks, subset_keys)
                if k <= self.parts.count
            },
            "union": {
                k: self.mean_error(own, lambda key, k=k: _union(needed, key, k)) for k, own in zip(ks, union_keys)
            },
        }

    def adversarial(self, keys: Sequence[Array], steps: Sequence[int]) -> dict[str, dict[int, Figure]]:
        found = {}
        for key, (scope, rows) in zip(keys, (("unique_per_datapoint", len(self.g)), ("shared_across_batch", 1))):
            r = jax.random.uniform(key, (rows, self.g.shape[1]))
            attack = lambda n, r=r: _adversary(self.parts.forward, self.g, self.data, self.right, r, n)
            found[scope] = {n: self.figure(attack(n)) for n in steps}
        return found

    def resample(self, key: Array) -> Figure:
        donors = [jax.random.permutation(k, len(self.g)) for k in jax.random.split(key, self.samples)]
        error = lambda donor: _resampled(self.parts.forward, self.needed, self.data, self.right, donor)
        return self.figure(float(np.mean([float(error(donor)) for donor in donors])))

    def scrub(self, key: Array) -> Figure:
        return self.mean_error(key, lambda k: jnp.maximum(self.needed, self.half(k)))

    def anti_scrub(self, key: Array) -> Figure:
        return self.mean_error(key, lambda k: 1 - self.needed * self.half(k))

    def exact(self) -> Figure | None:
        """The worst error of each row over all on/off patterns of the parts below full importance; the mean over rows.

        For one linear map the error is convex in r, so one of these patterns is the worst r."""
        g = self.g
        free = np.asarray(g) < 1
        count = int(free.sum(axis=1).max(initial=0))
        if count > EXACT_UP_TO:
            return None
        order = np.argsort(~free, axis=1, kind="stable")[:, :count]  # the free parts of each row first
        is_free, order = jnp.asarray(np.take_along_axis(free, order, axis=1)), jnp.asarray(order)
        largest = np.zeros(g.shape[0])
        for pattern in range(2**count):
            bits = jnp.asarray([(pattern >> i) & 1 for i in range(count)], bool)
            errors = _at_vertex(self.parts.forward, g, self.data, self.right, order, is_free, bits)
            largest = np.maximum(largest, np.asarray(errors))
        return self.figure(largest.mean())

    def interactions(self, pairs: int, key: Array) -> tuple[float, float]:
        """The mean and the largest interaction of two parts."""
        C, size = self.parts.count, self.size
        if C < 2:
            return 0.0, 0.0
        chosen = _pairs(C, pairs, np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32).tolist()))

        def damage(*ablated: int) -> float:
            off = np.zeros(C, np.float32)
            off[list(ablated)] = 1
            return ratio(float(_damage(self.parts.forward, jnp.asarray(off), self.data, self.right)), size)

        alone, none = {i: damage(i) for i in sorted({i for pair in chosen for i in pair})}, damage()
        both = [abs(damage(i, j) - alone[i] - alone[j] + none) for i, j in chosen]
        return float(np.mean(both)), float(np.max(both))


def _square(x: Array) -> Float[Array, " row"]:
    return jnp.sum(x.astype(jnp.float32) ** 2, axis=tuple(range(1, x.ndim)))


def _with_others(needed: Array, draw: Array, k: int) -> Array:
    """The needed parts, and the k other parts with the largest random numbers."""
    draw = jnp.where(needed > 0, -1.0, draw)
    least = -jnp.sort(-draw, axis=1)[:, k - 1 : k]
    return jnp.where((draw >= least) & (draw >= 0), 1.0, needed)


def _union(needed: Array, key: Array, k: int) -> Array:
    """The parts that row i or one of k other rows needs. The other rows are p(i) for k random permutations p."""
    found = needed
    for one in jax.random.split(key, k):
        found = jnp.maximum(found, needed[jax.random.permutation(one, needed.shape[0])])
    return found


@jax.jit
def _error(forward: MaskedForward, mask: Array, data: Array, right: Array) -> Float[Array, ""]:
    return jnp.mean(_square(forward.run(mask, data) - right))


@jax.jit
def _resampled(forward: MaskedForward, keep: Array, data: Array, right: Array, donor: Array) -> Float[Array, ""]:
    return jnp.mean(_square(forward.resampled(keep, data, donor) - right))


@jax.jit
def _adversary(forward: MaskedForward, g: Array, data: Array, right: Array, r: Array, steps: Array) -> Float[Array, ""]:
    """The error after sign ascent on r. The step size is 2 / steps."""
    loss = lambda r: jnp.sum(_square(forward.run(g + (1 - g) * jnp.broadcast_to(r, g.shape), data) - right))
    size = 2.0 / jnp.asarray(steps, jnp.float32)
    move = lambda _, r: jnp.clip(r + size * jnp.sign(jax.grad(loss)(r)), 0.0, 1.0)
    return loss(jax.lax.fori_loop(0, steps, move, r)) / data.shape[0]


@jax.jit
def _at_vertex(
    forward: MaskedForward, g: Array, data: Array, right: Array, order: Array, free: Array, bits: Array
) -> Array:
    """The error of each row when its free parts, in the given `order`, are set to `bits`."""
    r = (bits[None, :] & free).astype(jnp.float32)
    rows = jnp.arange(g.shape[0])[:, None]
    mask = g.at[rows, order].add((1 - jnp.take_along_axis(g, order, axis=1)) * r)
    return _square(forward.run(mask, data) - right)


@jax.jit
def _damage(forward: MaskedForward, off: Array, data: Array, right: Array) -> Float[Array, ""]:
    mask = jnp.broadcast_to(1 - off, (data.shape[0], off.shape[0]))
    return jnp.mean(_square(forward.run(mask, data) - right))


def _pairs(C: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """`count` different random pairs (i, j) with j < i < C, or all pairs if there are not more.

    In the order (1, 0), (2, 0), (2, 1), ... pair number k has the largest i with i (i - 1) / 2 <= k. So pairs that are
    not drawn are never computed.
    """
    total = C * (C - 1) // 2
    numbers = range(total) if total <= count else rng.choice(total, count, replace=False).tolist()
    rows = [(1 + math.isqrt(1 + 8 * k)) // 2 for k in numbers]
    return [(i, k - i * (i - 1) // 2) for i, k in zip(rows, numbers)]
