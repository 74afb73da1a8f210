"""`linear_readability`: how well a function of the input can be read linearly from activations.

found = linear_readability(x, f, train)
found.sup_error, found.r2, found.balanced_accuracy, found.selectivity, found.codelength, found.curve

f is ε-linearly readable from a if there is an r with |r·a(x) - f(x)| < ε for all x (Hänni et al. 2024,
arXiv:2408.05451). Accuracy alone says little: a probe of many columns also fits labels that mean nothing. So its
accuracy on shuffled labels stands beside it, and the number of bits that are needed to send the labels with its help.
That a function can be read does not say that the model uses it: see `causal_effect`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.labelled import Labelled
from jax_interp.core.logistic import fit_logistic

SHARES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0)
"""The parts of the training rows after which the prequential code fits a new probe."""


@dataclasses.dataclass(frozen=True)
class Readability:
    """How well a function can be read. All errors and accuracies are on held-out rows.

    Args:
      sup_error: the largest error of ridge regression.
      p95_error: the 95th percentile of its error.
      r2: the share of the variance of f that it explains. It can be negative.
      balanced_accuracy: of logistic regression: the mean of the accuracies in the two classes. None: f is not binary.
      shuffled_accuracy: the same on labels that were shuffled over all rows: the mean over draws.
      codelength: the bits that the prequential code of the training labels needs with the probe (Voita & Titov 2020,
        arXiv:2003.12298). None: f is not binary.
      uniform_codelength: the bits that it needs without a probe: one for each row.
      shuffled_codelength: the bits for shuffled labels: the mean over draws.
      curve: the balanced accuracy after the first n training rows: `[rows]`.
    """

    sup_error: float
    p95_error: float
    r2: float
    balanced_accuracy: float | None = None
    shuffled_accuracy: float | None = None
    codelength: float | None = None
    uniform_codelength: float | None = None
    shuffled_codelength: float | None = None
    curve: Labelled | None = None

    @property
    def selectivity(self) -> float | None:
        """The balanced accuracy minus that on shuffled labels (Hewitt & Liang 2019, with labels shuffled over rows)."""
        if self.balanced_accuracy is None or self.shuffled_accuracy is None:
            return None
        return self.balanced_accuracy - self.shuffled_accuracy

    @property
    def compression(self) -> float | None:
        """How many times shorter the code is with the probe than without."""
        if self.codelength is None or self.uniform_codelength is None:
            return None
        return self.uniform_codelength / self.codelength

    def to_json(self) -> dict[str, Any]:
        out = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "curve"}
        curve = None if self.curve is None else dict(zip(self.curve.axes["rows"], self.curve.values.tolist()))
        return out | {"selectivity": self.selectivity, "compression": self.compression, "curve": curve}


def linear_readability(
    x: Float[ArrayLike, "row d"],
    f: Float[np.ndarray, " row"] | Int[np.ndarray, " row"] | Bool[np.ndarray, " row"],
    train: Bool[np.ndarray, " row"],
    *,
    penalty: float = 1e-3,
    C: float = 1.0,
    draws: int = 3,
    seed: int = 0,
) -> Readability:
    """Measure how well f can be read linearly from x.

    Args:
      x: the activations.
      f: the value of the function in each row. If all values are 0 or 1, classification is measured too.
      train: the rows to fit on. The others are held out.
      penalty: the L2 penalty of the ridge regression, for columns of variance 1 and a mean loss.
      C: the inverse strength of the L2 penalty of the logistic regression, for columns of variance 1.
      draws: the number of draws of shuffled labels.
      seed: the seed of the draws and of the order in which the prequential code sends the rows.

    Raises:
      UserError: the shapes do not fit, a value is not finite, f is constant, or a class is missing on one side.
    """
    wide, target, train = np.asarray(x, np.float64), np.asarray(f, np.float64), np.asarray(train, bool)
    _check(wide, target, train)
    mean, scale = wide[train].mean(axis=0), wide[train].std(axis=0)
    varies = scale > 1e-6 * np.maximum(np.abs(mean), 1e-30)
    wide = np.where(varies, (wide - mean) / np.where(varies, scale, 1.0), 0.0)
    error = np.abs(_ridge(wide[train], target[train], penalty, wide[~train]) - target[~train])
    r2 = 1 - np.mean(error**2) / np.var(target[~train])
    figures = Readability(float(error.max()), float(np.quantile(error, 0.95)), float(r2))
    if not set(np.unique(target)) <= {0.0, 1.0}:
        return figures
    rng = np.random.default_rng(seed)
    labels = np.stack([target > 0, *(rng.permutation(target > 0) for _ in range(draws))])
    for y in labels:
        if len({*y[train]}) < 2 or len({*y[~train]}) < 2:
            raise UserError("both classes must be among the training rows and among the held-out rows")
    found = [_coded(wide, y, train, C, rng) for y in labels]
    accuracy, bits = np.stack([one[0] for one in found]), np.array([one[1] for one in found])
    return dataclasses.replace(
        figures,
        balanced_accuracy=float(accuracy[0, -1]),
        shuffled_accuracy=float(accuracy[1:, -1].mean()) if draws else None,
        codelength=float(bits[0]),
        uniform_codelength=float(train.sum()),
        shuffled_codelength=float(bits[1:].mean()) if draws else None,
        curve=Labelled(accuracy[0], {"rows": _ends(int(train.sum()))}, "balanced accuracy"),
    )


def _check(x: np.ndarray, f: np.ndarray, train: np.ndarray) -> None:
    if x.ndim != 2 or f.shape != (len(x),) or train.shape != f.shape:
        raise UserError(f"x has shape {x.shape}, f {f.shape} and train {train.shape}: give one entry for each row")
    if not (np.isfinite(x).all() and np.isfinite(f).all()):
        raise UserError("x or f has entries that are not finite")
    if min(train.sum(), (~train).sum()) < 4 or np.ptp(f[train]) == 0 or np.ptp(f[~train]) == 0:
        raise UserError("give at least four rows on each side of the split, and an f that is not constant on either")


def _ridge(x: np.ndarray, f: np.ndarray, penalty: float, new: np.ndarray) -> np.ndarray:
    """Predictions of ridge regression with an intercept. The columns of x have the mean 0."""
    gram = x.T @ x / len(x) + penalty * np.eye(x.shape[1])
    return new @ np.linalg.solve(gram, x.T @ (f - f.mean()) / len(x)) + f.mean()


def _ends(rows: int) -> list[int]:
    """The numbers of rows after which a probe is fitted: at least two, and each only once."""
    return sorted({max(2, round(share * rows)) for share in SHARES})


def _coded(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, C: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " rows"], float]:
    """(the balanced held-out accuracy after each part of the training rows, the bits of the prequential code).

    The first part is sent with one bit a row. Each later part is sent with the probe of the parts before it.
    """
    order = rng.permutation(np.flatnonzero(train))
    other = int(np.argmax(y[order] != y[order[0]]))
    order[[1, other]] = order[[other, 1]]  # the first part must have both classes
    ends = _ends(len(order))
    weight = np.zeros((len(ends), len(y)), np.float32)
    for row, end in zip(weight, ends, strict=True):
        row[order[:end]] = 1
    rows = jnp.broadcast_to(jnp.asarray(x, jnp.float32)[None], (len(ends), *x.shape))
    of = jnp.broadcast_to(jnp.asarray(y)[None], weight.shape)
    scores = np.asarray(fit_logistic(rows, of, jnp.asarray(weight), C=C).scores(rows), np.float64)
    right = (scores > 0) == y[None]
    accuracy = np.mean([right[:, ~train & (y == c)].mean(axis=1) for c in (False, True)], axis=0)
    bits = np.logaddexp(0, np.where(y, -scores, scores)) / np.log(2)
    sent = sum(bits[i, order[ends[i] : ends[i + 1]]].sum() for i in range(len(ends) - 1))
    return accuracy, float(ends[0] + sent)
