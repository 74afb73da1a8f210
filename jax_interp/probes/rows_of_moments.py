"""Probes from moments: a kind is fitted on a few rows that have exactly the moments of all rows.

A kind that depends on its rows only through the number and mean of each class and the pooled covariance gives the same
probe on any rows with these moments. 2 d rows are enough: with the scatter W = Σⱼ λⱼ vⱼ vⱼᵀ, the rows of a class are
its mean ± aⱼ vⱼ for some of the j. For a regression, the rows are those of (x, y) together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.erasure.moments import Moments
from jax_interp.probes.fit import FittedProbes, fit_probes
from jax_interp.probes.gather import Vectors
from jax_interp.probes.kind import Kind
from jax_interp.probes.labelled_tokens import LabelledTokens
from jax_interp.probes.token_rules import ALL

SAME = 1e-2
"""The scores of two fits are the same if they differ by less than this, in units of their spread."""


def fit_moments(
    kind: Kind, of: Mapping[str, Moments], classes: tuple[str, ...], *, seeds: Sequence[int] = (0,)
) -> FittedProbes:
    """The probes of all rows with these moments, one site after another.

    Args:
      kind: how the probes are found.
      of: the moments of each site, on the host.
      classes: the names of the classes; (): real targets.
      seeds: as in `fit_probes`.

    Raises:
      UserError: the kind depends on more than these moments, or does not fit the labels.
    """
    name = type(kind).__name__
    if kind.takes != "rows":
        raise UserError(f"{name} reads {kind.takes}, and moments are those of single rows: use fit_probes")
    if (kind.target == "number") == bool(classes):
        raise UserError(f"{name} does not fit {'classes' if classes else 'real targets'}")
    fitted: list[FittedProbes] = []
    for site, moments in of.items():
        one, other = (_fit(kind, site, moments, classes, seeds, seed) for seed in (0, 1))
        vectors, _ = rows_of(site, moments, classes, 2)
        scores = [f.scores(vectors).values for f in (one, other)]
        spread = np.std(scores[0], axis=-1, keepdims=True) + 1e-30
        if not np.max(np.abs(scores[0] - scores[1]) / spread) < SAME:
            raise UserError(
                f"{name} does not follow from the means and the covariance ({site}): it depends on more of the rows. "
                "Gather them and call fit_probes, or stream a logistic regression with stream_logistic"
            )
        fitted.append(one)
    probes = jax.tree.map(lambda *a: jnp.concatenate(a), *(f.probes for f in fitted))
    return FittedProbes(kind, probes, {**fitted[0].axes, "site": tuple(of)}, classes)


def _fit(
    kind: Kind, site: str, moments: Moments, classes: tuple[str, ...], seeds: Sequence[int], seed: int
) -> FittedProbes:
    vectors, weight = rows_of(site, moments, classes, seed)
    return fit_probes(kind, vectors, weight=weight, seeds=seeds)


def rows_of(
    site: str, moments: Moments, classes: tuple[str, ...], seed: int
) -> tuple[Vectors, Float[np.ndarray, " row"]]:
    """Rows with the given moments, and their weights. Other seeds give other rows with the same moments."""
    n, mean, mean_z = float(moments.n), _wide(moments.mean_x), _wide(moments.mean_z)
    xx, xz, zz = _wide(moments.xx), _wide(moments.xz), _wide(moments.zz)
    rng = np.random.default_rng(seed)
    if not classes:
        joint = np.block([[xx, xz], [xz.T, zz]])
        rows, of_class, weight = _rows(np.concatenate([mean, mean_z])[None], np.asarray([n]), joint, rng)
        return _vectors(site, rows[:, :-1], rows[:, -1].astype(np.float32), ()), weight
    count = np.round(n * np.concatenate([[1 - mean_z.sum()], mean_z]))
    offset = np.concatenate([-xz.sum(axis=1, keepdims=True), xz], axis=1).T / count[:, None]
    within = xx - np.einsum("c,ci,cj->ij", count, offset, offset)
    rows, of_class, weight = _rows(mean[None] + offset, count, within, rng)
    return _vectors(site, rows, of_class, classes), weight


def _rows(
    means: np.ndarray, counts: np.ndarray, scatter: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, Int[np.ndarray, " row"], Float[np.ndarray, " row"]]:
    """(rows, the class of each row, its weight) with these means, weights of classes, and scatter within classes."""
    d = len(scatter)
    values, vectors = np.linalg.eigh((scatter + scatter.T) / 2)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    root = vectors * np.sqrt(np.maximum(values, 0))[None, :] @ rotation  # root rootᵀ is the scatter
    owner = rng.permutation(np.arange(d) % len(means))
    rows, of_class, weight = [], [], []
    for c, mean in enumerate(means):
        axes = root[:, owner == c].T
        share = counts[c] / max(2 * len(axes), 1)  # each row stands for as many rows of its class
        offsets = axes / np.sqrt(2 * share) if len(axes) else np.zeros((0, d))
        some = np.concatenate([mean + offsets, mean - offsets]) if len(axes) else mean[None]
        rows.append(some)
        of_class += [c] * len(some)
        weight += [counts[c] / len(some)] * len(some)
    return np.concatenate(rows), np.asarray(of_class, np.int32), np.asarray(weight, np.float32)


def _vectors(site: str, rows: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Vectors:
    real = np.ones((len(rows), 1), bool)
    data = LabelledTokens("rows of moments", np.zeros((len(rows), 1), np.int32), real, real, labels, classes)
    return Vectors(data, (ALL,), {site: rows[None].astype(np.float32)})


def _wide(x: object) -> np.ndarray:
    return np.asarray(x, np.float64)
