"""How similar two sets of directions are, such as those of two dictionaries, of two seeds, or the true features.

Directions are rows [feature, ...]. Further axes (the sites of a crosscoder) are flattened. A row of norm 0 has cosine 0
with every row.

    mmcs(a, b)              mean over the rows of a of the largest cosine with b (Sharkey et al. 2022). It is not
                            symmetric. If b is much larger it is high for any a, so compute it both ways
    mcc(a, b)               mean |cosine| of the best one-to-one assignment (O'Neill et al. 2025; SynthSAEBench)
    uniqueness(a, truth)    number of distinct nearest true features divided by the number of rows of a
    fraction_found(a, truth, .9)  fraction of true features with a cosine of at least .9 with some row of a
    stability(a, b, ...)    whether runs with different seeds find the same features

Chance level: the largest cosine of a row with m Gaussian directions in d dimensions is about sqrt(2 ln m / d).
"""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_interp.core.errors import UserError

Directions = Float[Array, "feature *axes"]


def unit_directions(a: Directions) -> Float[Array, "feature d"]:
    """Flatten rows to one axis and scale them to norm 1, in float32. A row of norm 0 stays 0."""
    flat = a.reshape(a.shape[0], -1).astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(flat * flat, axis=1, keepdims=True))
    return flat / jnp.where(norm > 0, norm, jnp.ones_like(norm))


def _products(a: Float[Array, "row d"], b: Float[Array, "column d"]) -> Float[Array, "row column"]:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)  # a GPU's default keeps only three digits


@jax.jit
def cosines(a: Directions, b: Directions) -> Float[Array, "row column"]:
    """The cosine of every row of `a` with every row of `b`."""
    return _products(unit_directions(a), unit_directions(b))


@partial(jax.jit, static_argnames=("absolute", "exclude_self", "rows"))
def max_cosine(
    a: Directions, b: Directions, *, absolute: bool = False, exclude_self: bool = False, rows: int = 1024
) -> tuple[Float[Array, " row"], Int[Array, " row"]]:
    """The largest cosine of each row of `a` with a row of `b`, and the index of that row of `b`.

    Among equal cosines, the first row of `b` is chosen.

    Args:
      a: the first set of directions.
      b: the second set of directions.
      absolute: whether to use |cosine|.
      exclude_self: whether to skip row i of `b` for row i of `a`. Use it if `a` and `b` are the same set.
      rows: the number of rows of `a` whose cosines are in memory at a time.
    """
    a, b = unit_directions(a), unit_directions(b)
    n, block = a.shape[0], min(rows, a.shape[0])
    blocks = jnp.pad(a, ((0, -n % block), (0, 0))).reshape(-1, block, a.shape[1])
    columns = jnp.arange(b.shape[0])[None, :]

    def of_block(numbered):
        number, x = numbered
        c = _products(x, b)
        c = jnp.abs(c) if absolute else c
        if exclude_self:
            own = number * block + jnp.arange(block)
            c = jnp.where(own[:, None] == columns, jnp.full_like(c, -jnp.inf), c)
        return jnp.max(c, axis=1), jnp.argmax(c, axis=1)

    values, indices = jax.lax.map(of_block, (jnp.arange(len(blocks)), blocks))
    return values.reshape(-1)[:n], indices.reshape(-1)[:n]


def mmcs(a: Directions, b: Directions, *, absolute: bool = False) -> float:
    """Mean over the rows of `a` of the largest cosine with a row of `b`."""
    return float(np.mean(np.asarray(max_cosine(a, b, absolute=absolute)[0], np.float64)))


@dataclasses.dataclass(frozen=True)
class Matching:
    """A one-to-one assignment between two sets. It has as many pairs as the smaller set has directions."""

    rows: Int[np.ndarray, " pair"]
    """The index of each pair in the first set."""
    columns: Int[np.ndarray, " pair"]
    """The index of each pair in the second set."""
    cosines: Float[np.ndarray, " pair"]
    """The signed cosine of each pair."""


def match(a: Directions, b: Directions, *, absolute: bool = True) -> Matching:
    """The one-to-one assignment with the largest sum of |cosine|, or of cosines if `absolute` is False.

    It is exact (Hungarian algorithm, in float64 on the host). All cosines are in memory, and the time grows with the
    cube of the size of the smaller set.
    """
    from scipy.optimize import linear_sum_assignment

    c = np.asarray(cosines(a, b), np.float64)
    rows, columns = linear_sum_assignment(np.abs(c) if absolute else c, maximize=True)
    return Matching(rows, columns, c[rows, columns])


def mcc(a: Directions, b: Directions, *, absolute: bool = True) -> float:
    """Mean correlation coefficient: the mean |cosine| over the pairs of `match`. It is symmetric."""
    c = match(a, b, absolute=absolute).cosines
    return float(np.mean(np.abs(c) if absolute else c))


def uniqueness(latents: Directions, truth: Directions) -> float:
    """Number of distinct nearest true features divided by the number of latents. 1 if no two are the same."""
    nearest = np.asarray(max_cosine(latents, truth, absolute=True)[1])
    return len(np.unique(nearest)) / len(nearest)


def fraction_found(latents: Directions, truth: Directions, threshold: float = 0.9) -> float:
    """The fraction of true features that have a cosine of at least `threshold` with a latent. For the mean of these
    largest cosines, the "ground-truth recall", use `mmcs(truth, latents)`."""
    return float(np.mean(np.asarray(max_cosine(truth, latents)[0]) >= threshold))


@dataclasses.dataclass(frozen=True)
class Stability:
    """The agreement of runs, as means over ordered pairs of runs. Cosines are signed, because features have a sign."""

    pairs: int
    """Number of ordered pairs."""
    threshold: float
    """A feature counts as shared if its largest cosine is at least this."""
    shared: float
    """Fraction of features with a cosine of at least `threshold` in the other run."""
    mmcs: float
    """Mean largest cosine with a feature of the other run."""
    mcc: float
    """Mean cosine of the best one-to-one assignment. This is a mean over unordered pairs."""


def stability(*runs: Directions, threshold: float = 0.7) -> Stability:
    """Measure whether runs with different seeds find the same features.

    Args:
      *runs: the decoder directions of each run. Give at least two runs.
      threshold: a feature counts as shared if its largest cosine is at least this.

    Returns:
      The agreement of the runs.

    Raises:
      UserError: there are fewer than two runs.
    """
    if len(runs) < 2:
        raise UserError(f"stability of {len(runs)} run(s): give the directions of two or more")
    nearest = [np.asarray(max_cosine(a, b)[0], np.float64) for a, b in itertools.permutations(runs, 2)]
    return Stability(
        pairs=len(nearest),
        threshold=threshold,
        shared=float(np.mean([np.mean(c >= threshold) for c in nearest])),
        mmcs=float(np.mean([np.mean(c) for c in nearest])),
        mcc=float(np.mean([mcc(a, b, absolute=False) for a, b in itertools.combinations(runs, 2)])),
    )
