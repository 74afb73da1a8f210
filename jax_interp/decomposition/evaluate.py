"""All metrics of a trained decomposition on one batch, as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast_leaves
from jax_interp.core.leaves import PyTree
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.importance import causal_importance, read_inputs
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.linearity import (
    Figure,
    Grid,
    GridSettings,
    LinearityReport,
    LinearitySettings,
    MaskedFunction,
    composite_grid,
    decomposition_linearity,
    importance_matrix,
    mask_decomposition,
    oracle_importance,
)
from jax_interp.decomposition.losses import LossInputs, LossSettings
from jax_interp.decomposition.losses.faithfulness import faithfulness, relative_faithfulness
from jax_interp.decomposition.metrics import alive, hidden_report, l0, mask_report, one_hot_inputs, pgd_curve, spectrum
from jax_interp.decomposition.train import Trained

LINEARITY, GRID = LinearitySettings(), GridSettings()
ALIVE = 0.1  # a component is alive only if its importance is above this, even with a lower threshold


def evaluate(
    config: DecompositionConfig,
    trained: Trained,
    x: Array,
    *,
    labels: Array | None = None,
    key: Array | None = None,
    adversary_steps: Sequence[int] = (20, 40, 80, 160, 320),
    threshold: float = 0.0,
) -> dict[str, Any]:
    """All metrics of a trained decomposition on one batch.

    Args:
      config: the config of the run.
      trained: the decomposition.
      x: the batch.
      labels: the next tokens, for a language model (see `mask_report`).
      key: random key of the masks; None: key 1.
      adversary_steps: the numbers of ascent steps to measure.
      threshold: a component is important on a row if its importance there is above this. L0 and rounded masks use it.
        A component is alive if its importance is above both this and 0.1 on some row. A sigmoid that never reaches 0
        ("normal") needs a threshold above 0.

    Returns:
      JSON values: faithfulness, errors under six kinds of masks and for each number of adversary steps, errors of
      hidden activations, L0, numbers of live components, and mean importances. Values by layer are lists. A share of
      zero is None.

    Raises:
      UserError: the threshold is not from 0 to 1, or the batch is empty.
    """
    if not x.shape[0]:
        raise UserError("the batch to evaluate on is empty")
    if not 0 <= threshold < 1:
        raise UserError(f"threshold={threshold}: importances go from 0 to 1, so it is at least 0 and below 1")
    key = jax.random.key(1) if key is None else key
    settings = LossSettings(config.delta, config.sampling, config.compare)
    found = _figures(trained, upcast_leaves(x), labels, key, threshold, settings, tuple(adversary_steps))
    return json_values(found)


def json_values(figures: PyTree) -> Any:
    """Arrays as numbers and lists. A NaN, which is a share of zero, becomes None, because JSON has no NaN."""
    return jax.tree.map(lambda leaf: _without_nan(np.asarray(leaf).tolist()), figures)


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if value != value else value


@partial(jax.jit, static_argnames=("settings", "adversary_steps"))
def _figures(
    trained: Trained,
    x: Array,
    labels: Array | None,
    key: Array,
    threshold: float | Array,
    settings: LossSettings,
    adversary_steps: tuple[int, ...],
) -> dict[str, Any]:
    output, inputs, hidden = read_inputs(trained.model, x, outputs=True)
    importance = causal_importance(trained.ci_fn(trained.model, inputs), trained.sigmoid)
    of_batch = LossInputs(trained.model, (x,), output, importance, hidden, 1.0, settings)
    one, two, three = jax.random.split(key, 3)
    lower = of_batch.lower
    masks = mask_report(of_batch, one, labels, threshold)
    found = {
        "faithfulness": faithfulness(trained.model),
        "relative_faithfulness": relative_faithfulness(trained.model),
        "error": masks.error,
        "error_unrecovered": masks.error_unrecovered,
        "pgd": dict(zip(map(str, adversary_steps), pgd_curve(of_batch, two, adversary_steps))),
        "hidden": hidden_report(of_batch, three),
        "l0": l0(lower, threshold),
        "alive": {name: jnp.sum(on, axis=-1) for name, on in alive(lower, jnp.maximum(threshold, ALIVE)).items()},
        "spectrum": spectrum(lower),
    }
    return found | ({"ce": masks.ce, "ce_unrecovered": masks.ce_unrecovered} if labels is not None else {})


def linearity_of(
    config: DecompositionConfig,
    trained: Trained,
    x: Array,
    *,
    oracle: Decomposed | None = None,
    key: Array | None = None,
    threshold: float = 0.0,
    settings: LinearitySettings = LINEARITY,
) -> LinearityReport:
    """The linearity report of a trained decomposition.

    Args:
      config: the config of the run. Δ is a part if the run has one.
      trained: the decomposition.
      x: a batch.
      oracle: the decomposition that is known to be right (`linearity.oracle_decomposition`), if the inputs are
        features. The report then also has the excess of each error over the oracle's.
      key: random key; None: key 0.
      threshold: as in `evaluate`.
      settings: how many samples and steps the measurement uses.
    """
    importance = _lower(trained, x)
    measure = partial(decomposition_linearity, data=x, key=key, threshold=threshold, settings=settings)
    report = measure(trained.model, importance, delta=config.delta)
    return report if oracle is None else report.with_excess(measure(oracle, oracle_importance(oracle, x)))


_lower = jax.jit(lambda trained, x: trained.importance(x).lower)


def composites_of(
    config: DecompositionConfig,
    trained: Trained,
    n_features: int,
    *,
    threshold: float = 0.0,
    oracle: Decomposed | None = None,
    active: Sequence[int] = (1, 2),
    key: Array | None = None,
    settings: GridSettings = GRID,
) -> list[dict[str, Any]]:
    """`composites` of a decomposed model whose inputs are features.

    Args:
      config: the config of the run. Δ is a part if the run has one.
      trained: the decomposition.
      n_features: the number of inputs.
      threshold: a feature needs the parts whose importance on its one-hot input is above this.
      oracle: the decomposition that is known to be right, or None.
      active, key, settings: as in `composites`.
    """
    x = one_hot_inputs(n_features)

    def with_owners(model: Decomposed, importance: PerMatrix, delta: bool) -> OwnedParts:
        importance_of_parts = importance_matrix(model, importance, delta=delta)
        return mask_decomposition(model, delta=delta), np.asarray(importance_of_parts) > threshold

    known = None if oracle is None else with_owners(oracle, oracle_importance(oracle, x), False)
    own = with_owners(trained.model, _lower(trained, x), config.delta)
    return composites(own, known, active=active, key=key, settings=settings)


OwnedParts = tuple[MaskedFunction, Bool[np.ndarray, "feature part"]]
"""A function with parts, and which of the parts each feature needs."""


def composites(
    parts: OwnedParts,
    oracle: OwnedParts | None = None,
    *,
    active: Sequence[int] = (1, 2),
    key: Array | None = None,
    settings: GridSettings = GRID,
) -> list[dict[str, Any]]:
    """Mechanistic faithfulness on composite inputs, see `composite_grid`.

    Args:
      parts: the parts, and which of them each feature needs.
      oracle: the same for the decomposition that is known to be right, or None.
      active: the numbers of features that are on at the same time.
      key: random key; None: key 2.
      settings: the numbers of inputs and sets, see `composite_grid`.

    Returns:
      A list of rows with JSON values: the error divided by ‖f(x)‖², and its excess over the oracle's.
    """
    key = jax.random.key(2) if key is None else key

    def grid(parts: OwnedParts, count: int) -> Grid:
        masked, owner = parts
        features = jnp.eye(len(owner))
        return composite_grid(masked.run, masked.target, owner, features, key, active=count, settings=settings)

    found = []
    for k in active:
        rows = grid(parts, k).rows()
        known = [None] * len(rows)
        if oracle is not None:
            known = [value for _, value in grid(oracle, k).rows()]
        for (name, value), other in zip(rows, known, strict=True):
            excess = None if value is None or other is None else value - other
            found.append({"name": f"{k} on, {name}", "normalised": value, "excess": excess})
    return json_values(found)


def report_rows(report: LinearityReport) -> list[dict[str, Any]]:
    """A linearity report as a list of rows with JSON values."""
    rows = []
    for name, value in report.rows():
        if isinstance(value, Figure):
            rows.append({"name": name, "raw": value.raw, "normalised": value.normalised, "excess": value.excess})
        else:
            rows.append({"name": name, "value": value})
    return json_values(rows)
