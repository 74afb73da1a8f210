"""Importances on one-hot probes, against what is known: one component a feature, or a few for all of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.matrices import is_stacked

PROBE = 0.75  # the value of the one feature that is on
EXACT_UP_TO = 500  # columns are matched exactly up to this many, greedily above


def probe(n_features: int, value: float = PROBE) -> Float[Array, "feature feature"]:
    """One row for each feature, it alone on."""
    return value * jnp.eye(n_features, dtype=jnp.float32)


def identity_error(importance: Float[Array, "feature C"], tolerance: float = 0.1) -> int:
    """How far the importances of one-hot probes are from a permuted identity: the number of matched entries below
    1 - tolerance and of others above tolerance.

    Columns are matched so that the matched importances add up to the most (Hungarian algorithm; greedily where both
    sides have more than 500). 0: each feature has its own component and no other.
    """
    values = np.asarray(jax.device_get(importance), np.float64)
    if values.ndim != 2:
        raise UserError(f"importances of one-hot probes are [feature, C], got shape {values.shape}")
    rows, columns = matched(values)
    on = np.zeros(values.shape, bool)
    on[rows, columns] = True
    lacking = values.shape[0] - len(rows)  # features that no column is left for
    return int(np.sum(values[on] < 1 - tolerance) + np.sum(values[~on] > tolerance)) + lacking


def pattern_errors(
    model: Decomposed, importance: PerMatrix, patterns: Mapping[str, str], tolerances: Sequence[float] = (0.1, 0.2)
) -> dict[str, dict[str, Any]]:
    """How far importances on one-hot probes are from what is expected, matrix by matrix: the `pattern`, and `errors` by
    tolerance, a list over layers where there are layers.

    `patterns` says by patterns of addresses "identity" (`identity_error`) or "dense" (`dense_error` with as many
    components as the matrix has inputs); nothing is said of a matrix that none of them names.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, g in importance.items():
        kind = next((kind for pattern, kind in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if kind is None:
            continue
        k = model.weight(name).shape[-2]

        def off(values: Array, tolerance: float, kind: str = kind, k: int = k) -> int:
            return identity_error(values, tolerance) if kind == "identity" else dense_error(values, k, tolerance)

        found[name] = {
            "pattern": kind if kind == "identity" else f"{kind}, {k} components",
            "errors": {str(t): [off(one, t) for one in g] if is_stacked(name) else off(g, t) for t in tolerances},
        }
    return found


def matched(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of a one-to-one matching of large total value."""
    if min(values.shape) <= EXACT_UP_TO:
        from scipy.optimize import linear_sum_assignment  # JAX itself stands on scipy

        return linear_sum_assignment(values, maximize=True)
    left, rows, columns = values.copy(), [], []
    for _ in range(min(values.shape)):
        row, column = np.unravel_index(np.argmax(left), left.shape)
        rows.append(row)
        columns.append(column)
        left[row, :] = left[:, column] = -np.inf
    return np.asarray(rows), np.asarray(columns)


def dense_error(importance: Float[Array, "feature C"], k: int, tolerance: float = 0.1, min_entries: int = 1) -> int:
    """How far importances are from k columns in use and all others off.

    With columns sorted by mass: for each of the first k the number of entries of at least 1 - tolerance that it lacks
    of `min_entries`; for the others the number of entries above tolerance.
    """
    values = np.asarray(jax.device_get(importance), np.float64)
    values = values[:, np.argsort(-values.sum(axis=0), kind="stable")]
    strong = np.sum(values[:, :k] >= 1 - tolerance, axis=0)
    lacking = np.sum(np.maximum(min_entries - strong, 0)) + min_entries * max(k - values.shape[1], 0)
    return int(lacking + np.sum(values[:, k:] > tolerance))
