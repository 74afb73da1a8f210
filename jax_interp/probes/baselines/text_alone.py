"""What can be told from the text alone: logistic regression on counts of tokens, or on the number of tokens.

    scores = bag_of_words(data, split.train)       [split, example], the log-odds of the positive class

A probe that is no better than a bag of words has shown nothing about the model. The problems are sparse and small, so
they are solved on the host, in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.probes.labelled_tokens import LabelledTokens


def bag_of_words(
    data: LabelledTokens, train: Bool[np.ndarray, "*split example"], *, C: float = 1.0
) -> Float[np.ndarray, "split example"]:
    """Scores of a logistic regression on how often each token occurs.

    Args:
      data: the examples. Only readable tokens are counted.
      train: the examples to fit on, one row for each split.
      C: the inverse strength of the L2 penalty, as in scikit-learn.

    Returns:
      The log-odds of the second class, for all examples, trained on or not.

    Raises:
      UserError: there are not two classes, or the training part lacks one.
    """
    from scipy.sparse import csr_array  # JAX requires scipy, so it is installed

    names, column = np.unique(data.tokens[data.readable], return_inverse=True)
    row = np.nonzero(data.readable)[0]
    counts = csr_array((np.ones(row.size), (row, column)), shape=(len(data), names.size))
    return _scores(data, counts, train, C)


def length_alone(
    data: LabelledTokens, train: Bool[np.ndarray, "*split example"], *, C: float = 1.0
) -> Float[np.ndarray, "split example"]:
    """Scores of a logistic regression on the number of readable tokens, in units of its deviation over the training
    part. Args, Returns and Raises as in `bag_of_words`."""
    from scipy.sparse import csr_array

    out = []
    for part in np.atleast_2d(train):
        length = lengths(data).astype(float)
        spread = length[part].std()
        scaled = (length - length[part].mean()) / (spread if spread > 0 else 1.0)
        out.append(_scores(data, csr_array(scaled[:, None]), part, C)[0])
    return np.stack(out)


def lengths(data: LabelledTokens) -> Int[np.ndarray, " example"]:
    """The number of readable tokens of each example."""
    return data.readable.sum(axis=1)


def _scores(data: LabelledTokens, x: Any, train: np.ndarray, C: float) -> np.ndarray:
    if len(data.classes) != 2:
        raise UserError(f"{data.name} has the classes {', '.join(data.classes) or 'none'}: a baseline needs two")
    if not C > 0:
        raise UserError(f"C={C} must be positive: it is the inverse strength of the penalty")
    out = []
    for part in np.atleast_2d(np.asarray(train, bool)):
        y = data.labels[part] == 1
        if y.all() or not y.any():
            raise UserError(f"{data.name}: the training part has examples of one class only")
        weight, bias = _logistic(x[np.flatnonzero(part)], y, C)
        out.append(x @ weight + bias)
    return np.stack(out)


def _logistic(x: Any, y: Bool[np.ndarray, " row"], C: float) -> tuple[np.ndarray, float]:
    """For a sparse matrix x: the minimum of C Σ log(1 + exp(-s (x·w + b))) + ½‖w‖², with s = ±1."""
    from scipy.optimize import minimize
    from scipy.special import expit

    sign = np.where(y, 1.0, -1.0)

    def objective(params: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (x @ params[:-1] + params[-1])
        slope = -C * sign * expit(-margin)
        value = C * np.logaddexp(0, -margin).sum() + 0.5 * params[:-1] @ params[:-1]
        return value, np.append(x.T @ slope + params[:-1], slope.sum())

    start = np.append(np.zeros(x.shape[1]), np.log(y.sum() / (~y).sum()))
    options = {"maxiter": 10_000, "ftol": 0.0, "gtol": 1e-8 * C * y.size}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    if not np.isfinite(found.x).all():
        raise UserError("the logistic regression on the text did not converge")
    return found.x[:-1], float(found.x[-1])
