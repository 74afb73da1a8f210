"""Metrics of importances: how many components are important, and the patterns on one-hot inputs.

On one-hot inputs the right pattern is known for toys: one component for each feature ("identity"), or a few components
that all features use ("dense").
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_interp.core.errors import UserError
from jax_interp.core.processes import to_host
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.matrices import is_stacked, row_axes

PROBE = 0.75  # the value of the feature that is on (SPD 2025)
EXACT_UP_TO = 500  # up to this number of columns the matching is exact, above it is greedy


def l0(importance: PerMatrix, threshold: float | Array = 0.0) -> dict[str, Float[Array, "*layer"]]:
    """For each matrix, the number of components with an importance above `threshold`, as a mean over rows."""
    found = {}
    for name, g in importance.items():
        found[name] = jnp.mean(jnp.sum((g > threshold).astype(jnp.float32), axis=-1), axis=row_axes(name, g))
    return found


def alive(importance: PerMatrix, threshold: float | Array = 0.1) -> dict[str, Bool[Array, "*layer C"]]:
    """For each matrix, True for the components whose importance is above `threshold` on some row."""
    return {name: jnp.any(g > threshold, axis=row_axes(name, g)) for name, g in importance.items()}


def spectrum(importance: PerMatrix) -> dict[str, Float[Array, "*layer C"]]:
    """For each matrix, the mean importances in descending order.

    A sharp drop of the logarithm separates live from dead components. This says more than whether a component was ever
    important.
    """
    return {name: -jnp.sort(-jnp.mean(g, axis=row_axes(name, g)), axis=-1) for name, g in importance.items()}


def one_hot_inputs(n_features: int, value: float = PROBE) -> Float[Array, "feature feature"]:
    """One row for each feature, in which only this feature is on."""
    return value * jnp.eye(n_features, dtype=jnp.float32)


def identity_error(importance: Float[Array, "feature C"], tolerance: float = 0.1) -> int:
    """How far the importances on one-hot inputs are from a permuted identity (the identity-CI error).

    Components are matched with features so that the sum of the matched importances is as large as possible. The
    matching is exact (Hungarian algorithm), or greedy if there are more than 500 components and more than 500 features.

    Args:
      importance: lower importances on `one_hot_inputs`.
      tolerance: how far from 0 or 1 an entry may be.

    Returns:
      The number of matched entries below 1 - tolerance, plus the number of other entries above tolerance. 0 means that
      each feature has exactly one component, which no other feature uses.

    Raises:
      UserError: the importances are not a matrix.
    """
    values = np.asarray(to_host(importance), np.float64)
    if values.ndim != 2:
        raise UserError(f"importances on one-hot inputs are [feature, C], got shape {values.shape}")
    rows, columns = match_components(values)
    on = np.zeros(values.shape, bool)
    on[rows, columns] = True
    unmatched = values.shape[0] - len(rows)  # features without a component
    return int(np.sum(values[on] < 1 - tolerance) + np.sum(values[~on] > tolerance)) + unmatched


def pattern_errors(
    model: Decomposed, importance: PerMatrix, patterns: Mapping[str, str], tolerances: Sequence[float] = (0.1, 0.2)
) -> dict[str, dict[str, Any]]:
    """For each matrix, how far the importances on one-hot inputs are from the expected pattern.

    Args:
      model: the decomposed model.
      importance: lower importances on `one_hot_inputs`, `[*layer, feature, C]` for each matrix.
      patterns: for each address pattern, "identity" (`identity_error`) or "dense" (`dense_error` with as many
        components as the matrix has inputs). A matrix that no address pattern matches is left out.
      tolerances: the tolerances at which errors are counted.

    Returns:
      For each matrix its `pattern`, and its `errors` by tolerance. An error is a number, or a list over layers.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, g in importance.items():
        kind = next((kind for pattern, kind in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if kind is None:
            continue
        k = model.weight(name).shape[-2]

        def count_errors(values: Array, tolerance: float, kind: str = kind, k: int = k) -> int:
            return identity_error(values, tolerance) if kind == "identity" else dense_error(values, k, tolerance)

        found[name] = {
            "pattern": kind if kind == "identity" else f"{kind}, {k} components",
            "errors": {
                str(t): [count_errors(one, t) for one in g] if is_stacked(name) else count_errors(g, t)
                for t in tolerances
            },
        }
    return found


def match_components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of a one-to-one matching with a large sum of values; the largest, up to 500 rows or columns."""
    if min(values.shape) <= EXACT_UP_TO:
        from scipy.optimize import linear_sum_assignment  # JAX requires scipy, so it is installed

        return linear_sum_assignment(values, maximize=True)
    left, rows, columns = values.copy(), [], []
    for _ in range(min(values.shape)):
        row, column = np.unravel_index(np.argmax(left), left.shape)
        rows.append(row)
        columns.append(column)
        left[row, :] = left[:, column] = -np.inf
    return np.asarray(rows), np.asarray(columns)


def dense_error(importance: Float[Array, "feature C"], k: int, tolerance: float = 0.1, min_entries: int = 1) -> int:
    """How far the importances are from a pattern with k components in use and all others off.

    The k components with the largest sums of importances should be the ones in use.

    Args:
      importance: lower importances on `one_hot_inputs`.
      k: the expected number of components in use.
      tolerance: how far from 0 or 1 an entry may be.
      min_entries: the number of entries of at least 1 - tolerance that each of the k components must have.

    Returns:
      The number of such entries that the k components lack, plus the number of entries above tolerance of all others.
    """
    values = np.asarray(to_host(importance), np.float64)
    values = values[:, np.argsort(-values.sum(axis=0), kind="stable")]
    strong = np.sum(values[:, :k] >= 1 - tolerance, axis=0)
    missing = np.sum(np.maximum(min_entries - strong, 0)) + min_entries * max(k - values.shape[1], 0)
    return int(missing + np.sum(values[:, k:] > tolerance))
