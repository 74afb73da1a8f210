"""All figures of a trained decomposition on one batch, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.importance import causal_importance, read_inputs
from jax_interp.decomposition.importance.inputs import PerMatrix
from jax_interp.decomposition.linearity import (
    Ablatable,
    Figure,
    Grid,
    LinearityReport,
    composite_grid,
    decomposition_linearity,
    needed,
    of_decomposition,
    over,
    side_by_side,
)
from jax_interp.decomposition.losses import Scene
from jax_interp.decomposition.losses.faithfulness import faithfulness, relative_faithfulness
from jax_interp.decomposition.losses.scene import Compare
from jax_interp.decomposition.masks import Sampling
from jax_interp.decomposition.metrics import alive, hidden_report, l0, mask_report, pgd_curve, probe, spectrum
from jax_interp.decomposition.train import Trained

ALIVE = 0.1  # a component is not alive by less, however low the threshold


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
    """Faithfulness; errors under six kinds of masks and along the adversary's steps; hidden activations; how many
    components are important and alive. `labels` as in `mask_report`. JSON values; per-layer figures are lists.

    threshold: above which a component is important on a row, in L0 and in rounded masks; and alive, where it is above
      0.1 as well on some row. Of a sigmoid that never gets to 0 ("normal") every component is above 0.
    """
    key = jax.random.key(1) if key is None else key
    alike = (config.delta, config.sampling, config.compare)
    found = _figures(trained, x, labels, key, threshold, alike, tuple(adversary_steps))
    return jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), found)


@partial(jax.jit, static_argnames=("alike", "adversary_steps"))
def _figures(
    trained: Trained,
    x: Array,
    labels: Array | None,
    key: Array,
    threshold: Any,
    alike: tuple[bool, Sampling, Compare],
    adversary_steps: tuple[int, ...],
) -> dict[str, Any]:
    output, inputs, hidden = read_inputs(trained.model, x, outputs=True)
    importance = causal_importance(trained.gates(trained.model, inputs), trained.sigmoid)
    scene = Scene(trained.model, (x,), output, importance, hidden, 1.0, *alike)
    one, two, three = jax.random.split(key, 3)
    lower = scene.importance.lower
    masks = mask_report(scene, one, labels, threshold)
    found = {
        "faithfulness": faithfulness(trained.model),
        "relative_faithfulness": relative_faithfulness(trained.model),
        "error": masks.error,
        "error_unrecovered": masks.error_unrecovered,
        "pgd": dict(zip(map(str, adversary_steps), pgd_curve(scene, two, adversary_steps))),
        "hidden": hidden_report(scene, three),
        "l0": l0(lower, threshold),
        "alive": {name: jnp.sum(on, axis=-1) for name, on in alive(lower, jnp.maximum(threshold, ALIVE)).items()},
        "spectrum": spectrum(lower),
    }
    return found | ({"ce": masks.ce, "ce_unrecovered": masks.ce_unrecovered} if labels is not None else {})


def linearity_of(
    config: DecompositionConfig, trained: Trained, x: Array, *, oracle: Decomposed | None = None, **options: Any
) -> LinearityReport:
    """The linearity report of a trained decomposition on `x`, its Δ among the parts where it was trained with one. With
    `oracle` (see `linearity.ideal`), of inputs that are features, every figure has its excess over the oracle's.
    `options` as in `linearity.linearity`, `threshold` as in `evaluate` among them."""
    importance = _lower(trained, x)
    report = decomposition_linearity(trained.model, importance, x, delta=config.delta, **options)
    if oracle is None:
        return report
    return over(report, decomposition_linearity(oracle, needed(oracle, x), x, **options))


_lower = jax.jit(lambda trained, x: trained.importance(x).lower)


def composites_of(
    config: DecompositionConfig,
    trained: Trained,
    n_features: int,
    *,
    threshold: float = 0.0,
    oracle: Decomposed | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """`composites` of a decomposed model whose inputs are features, each owning the parts whose importance is above
    `threshold` on its one-hot probe, beside those of `oracle` (see `linearity.ideal`)."""
    x = probe(n_features)

    def owned(model: Decomposed, importance: PerMatrix, delta: bool) -> Owned:
        importance_of_parts = side_by_side(model, importance, delta=delta)
        return of_decomposition(model, delta=delta), np.asarray(importance_of_parts) > threshold

    least = None if oracle is None else owned(oracle, needed(oracle, x), False)
    return composites(owned(trained.model, _lower(trained, x), config.delta), least, **options)


Owned = tuple[Ablatable, Bool[np.ndarray, "feature part"]]  # parts, and which of them each feature needs


def composites(
    parts: Owned,
    oracle: Owned | None = None,
    *,
    active: Sequence[int] = (1, 2),
    key: Array | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Mechanistic faithfulness: `composite_grid`, with its `options`, of `active` features at a time. JSON values, row
    by row: the error over ‖f(x)‖², and its excess over the oracle's."""
    key = jax.random.key(2) if key is None else key

    def grid(parts: Owned, count: int) -> Grid:
        able, owner = parts
        return composite_grid(able.run, able.target, owner, jnp.eye(len(owner)), key, active=count, **options)

    found = []
    for k in active:
        rows = grid(parts, k).rows()
        least = [None] * len(rows)
        if oracle is not None:
            least = [value for _, value in grid(oracle, k).rows()]
        for (name, value), other in zip(rows, least, strict=True):
            excess = None if value is None or other is None else value - other
            found.append({"name": f"{k} on, {name}", "normalised": value, "excess": excess})
    return found


def plain(report: LinearityReport) -> list[dict[str, Any]]:
    """A linearity report as JSON values, row by row."""
    rows = []
    for name, value in report.rows():
        if isinstance(value, Figure):
            rows.append({"name": name, "raw": value.raw, "normalised": value.normalised, "excess": value.excess})
        else:
            rows.append({"name": name, "value": value})
    return rows
