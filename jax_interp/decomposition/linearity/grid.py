"""Composite inputs of known features: what every set of parts should do to them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Grid:
    """Relative squared errors (sum over rows and outputs, over the same sum of the right output's squares).

    strict: with exactly the parts of the features that are on, against f(x); the mean over sets of features.
    superset_mean, superset_max: with those and any others.
    removed: with some feature's part missing, against f of the features whose parts are there ("mechanism removed");
    None where no such case was met.
    """

    strict: float
    superset_mean: float
    superset_max: float
    removed: float | None

    def rows(self) -> list[tuple[str, float | None]]:
        """Every entry by name, in order."""
        names = ("needed parts alone", "and any others, mean", "and any others, worst", "mechanism removed")
        return list(zip(names, (self.strict, self.superset_mean, self.superset_max, self.removed)))


def composite_grid(
    run: Callable[[Array, Array], Array],
    target: Callable[[Array], Array],
    owner: Bool[np.ndarray, "feature part"],
    features: Float[Array, "feature d"],
    key: Array,
    *,
    active: int = 1,
    samples: int = 64,
    cap: int = 64,
    feature_sets: int | None = None,
    low: float = 0.2,
    high: float = 1.0,
) -> Grid:
    """For each set A of `active` features (of `feature_sets` random ones where there are more), inputs
    `Σ_{i in A} t_i features[i]` with t ~ U[low, high].

    `owner[i]` are the parts that feature i needs, S(A) their union. All sets T of parts are gone through that contain
    S(A), and as many that do not, up to `cap` of each (chosen at random where there are more). `run(mask, x)` may be
    any function from sets of parts to behaviour: its weights need not add up, which is how mechanistic faithfulness
    alone is measured.
    """
    owner = np.asarray(owner, bool)
    n, parts = owner.shape
    if not 0 < active <= n:
        raise UserError(f"active={active} of {n} features: from 1 to {n}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32).tolist())
    strict, supersets, removed = [], [], []
    worst = 0.0
    for A in _features(n, active, feature_sets, rng):
        amplitude = np.zeros((samples, n), np.float32)
        amplitude[:, list(A)] = rng.uniform(low, high, (samples, active))
        x = jnp.asarray(amplitude) @ features
        y = np.asarray(target(x), np.float64)
        needed = np.any(owner[list(A)], axis=0)
        errors = [_relative(run, T, x, y) for T in _sets(parts, needed, cap, rng, containing=True)]
        strict.append(errors[0])
        supersets.append(float(np.mean(errors)))
        worst = max(worst, max(errors))
        for T in _sets(parts, needed, cap, rng, containing=False):
            kept = [i for i in A if not (owner[i] & ~T).any()]
            partial = np.zeros_like(amplitude)
            partial[:, kept] = amplitude[:, kept]
            right = np.asarray(target(jnp.asarray(partial) @ features), np.float64)
            removed.append(_relative(run, T, x, right, over=y))
    return Grid(float(np.mean(strict)), float(np.mean(supersets)), worst, float(np.mean(removed)) if removed else None)


def _relative(run: Callable, T: np.ndarray, x: Array, right: np.ndarray, over: np.ndarray | None = None) -> float:
    mask = jnp.broadcast_to(jnp.asarray(T, jnp.float32), (x.shape[0], len(T)))
    error = np.asarray(run(mask, x), np.float64) - right
    return float((error**2).sum() / max(((right if over is None else over) ** 2).sum(), 1e-30))


def _features(n: int, active: int, count: int | None, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """All sets of `active` of n features, or `count` different ones at random where there are more."""
    total = math.comb(n, active)
    if count is None or total <= count:
        return list(itertools.combinations(range(n), active))
    if total <= 4 * count:
        every = list(itertools.combinations(range(n), active))
        return [every[i] for i in rng.choice(total, count, replace=False)]
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        found[tuple(sorted(rng.choice(n, active, replace=False).tolist()))] = None
    return list(found)


def _sets(
    parts: int, needed: np.ndarray, cap: int, rng: np.random.Generator, containing: bool
) -> list[Bool[np.ndarray, " part"]]:
    """Sets of parts that contain what is needed, the first of them that alone; or sets that lack some of it."""
    free = np.flatnonzero(~needed) if containing else np.arange(parts)
    if 2 ** min(len(free), 40) <= 4 * cap:
        every = list(itertools.product([False, True], repeat=len(free)))
        choices = np.array(every, bool).reshape(len(every), len(free))
        rest = rng.permutation(len(choices) - 1) + 1
        choices = choices[np.concatenate([[0], rest])]
    else:
        choices = rng.random((4 * cap, len(free))) < 0.5
        choices[0] = False
    found = np.zeros((len(choices), parts), bool)
    found[:, free] = choices
    if containing:
        found |= needed[None]
    else:
        found = found[(needed[None] & ~found).any(axis=1)]
    return list(found[:cap])
