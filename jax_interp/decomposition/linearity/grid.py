"""The composite grid: inputs made of known features, run with many sets of parts."""

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
from jax_interp.decomposition.linearity.report import ratio


@dataclasses.dataclass(frozen=True)
class Grid:
    """Squared errors divided by the square of the right output. Both are summed over rows and outputs.

    strict: the error when exactly the parts are on that the active features need. The right output is f(x). This is the
      mean over sets of features.
    superset_mean, superset_max: the error when the needed parts and some other parts are on.
    removed: the error when some needed part is off ("mechanism removed"). The right output is f of the features whose
      parts are all on. None if there was no such case.
    """

    strict: float
    superset_mean: float
    superset_max: float
    removed: float | None

    def rows(self) -> list[tuple[str, float | None]]:
        """The names and values of all fields, in order."""
        names = ("needed parts alone", "and any others, mean", "and any others, worst", "mechanism removed")
        return list(zip(names, (self.strict, self.superset_mean, self.superset_max, self.removed)))


@dataclasses.dataclass(frozen=True)
class GridSettings:
    """How large a composite grid is.

    samples: the number of inputs for each set of features.
    cap: the largest number of sets of parts of each of the two kinds. If there are more, random sets are used.
    feature_sets: the largest number of sets of features. If there are more, random sets are used. None: all sets.
    amplitudes: the range of the uniform amplitudes.
    """

    samples: int = 64
    cap: int = 64
    feature_sets: int | None = None
    amplitudes: tuple[float, float] = (0.2, 1.0)


def composite_grid(
    run: Callable[[Array, Array], Array],
    target: Callable[[Array], Array],
    owner: Bool[np.ndarray, "feature part"],
    features: Float[Array, "feature d"],
    key: Array,
    *,
    active: int = 1,
    settings: GridSettings = GridSettings(),
) -> Grid:
    """Run composite inputs with many sets of parts (mechanistic faithfulness).

    For each set A of features the inputs are `Σ_{i in A} t_i features[i]` with random amplitudes t. S(A) is the set of
    all parts that the features in A need. The function is run with sets of parts that contain S(A), and with sets that
    do not.

    Args:
      run: `run(mask, x)`, the output with a set of parts. The weights behind it do not have to be sums of parts.
      target: the function with the right behaviour.
      owner: which parts each feature needs.
      features: the input of each feature.
      key: random key of inputs and sets.
      active: the number of features that are on at the same time.
      settings: the numbers of inputs and sets.

    Raises:
      UserError: `active` is not between 1 and the number of features.
    """
    owner = np.asarray(owner, bool)
    n, parts = owner.shape
    if not 0 < active <= n:
        raise UserError(f"active={active} of {n} features: from 1 to {n}")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32).tolist())
    strict, supersets, removed = [], [], []
    worst = 0.0
    for A in _features(n, active, settings.feature_sets, rng):
        amplitude = np.zeros((settings.samples, n), np.float32)
        amplitude[:, list(A)] = rng.uniform(*settings.amplitudes, (settings.samples, active))
        x = jnp.asarray(amplitude) @ features
        y = np.asarray(target(x), np.float64)
        needed = np.any(owner[list(A)], axis=0)
        errors = [_relative(run, T, x, y) for T in _sets(parts, needed, settings.cap, rng, containing=True)]
        strict.append(errors[0])
        supersets.append(float(np.mean(errors)))
        worst = max(worst, max(errors))
        for T in _sets(parts, needed, settings.cap, rng, containing=False):
            kept = [i for i in A if not (owner[i] & ~T).any()]
            partial = np.zeros_like(amplitude)
            partial[:, kept] = amplitude[:, kept]
            right = np.asarray(target(jnp.asarray(partial) @ features), np.float64)
            removed.append(_relative(run, T, x, right, scale=y))
    return Grid(float(np.mean(strict)), float(np.mean(supersets)), worst, float(np.mean(removed)) if removed else None)


def _relative(run: Callable, T: np.ndarray, x: Array, right: np.ndarray, scale: np.ndarray | None = None) -> float:
    mask = jnp.broadcast_to(jnp.asarray(T, jnp.float32), (x.shape[0], len(T)))
    error = np.asarray(run(mask, x), np.float64) - right
    return ratio((error**2).sum(), ((right if scale is None else scale) ** 2).sum())


def _features(n: int, active: int, count: int | None, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """All sets of `active` out of n features. If there are more than `count`, `count` different random sets."""
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
    """Sets of parts that contain all needed parts (the first set has only these), or sets that lack some of them."""
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
