"""All figures of a trained decomposition on one batch, as plain data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.importance import causal_importance, read_inputs
from jax_interp.decomposition.linearity import Figure, LinearityReport, decomposition_linearity
from jax_interp.decomposition.losses import Scene
from jax_interp.decomposition.losses.faithfulness import faithfulness, relative_faithfulness
from jax_interp.decomposition.metrics import alive, hidden_report, l0, mask_report, pgd_curve, spectrum
from jax_interp.decomposition.train import Trained


def evaluation_scene(config: DecompositionConfig, trained: Trained, x: Array) -> Scene:
    """What the metrics look at: the target's pass over `x` and the importances there."""
    output, inputs, hidden = read_inputs(trained.model, x, outputs=True)
    importance = causal_importance(trained.gates(trained.model, inputs), trained.sigmoid)
    return Scene(trained.model, (x,), output, importance, hidden, 1.0, config.delta, config.sampling, config.compare)


def evaluate(
    config: DecompositionConfig,
    trained: Trained,
    x: Array,
    *,
    labels: Array | None = None,
    key: Array | None = None,
    adversary_steps: tuple[int, ...] = (20, 40, 80, 160, 320),
    threshold: float = 0.1,
) -> dict[str, Any]:
    """Faithfulness; errors under six kinds of masks and along the adversary's steps; hidden activations; how many
    components are important and alive. `labels` as in `mask_report`. JSON values; per-layer figures are lists."""
    key = jax.random.key(1) if key is None else key

    @jax.jit
    def figures(trained: Trained, x: Array, key: Array) -> dict[str, Any]:
        scene = evaluation_scene(config, trained, x)
        one, two, three = jax.random.split(key, 3)
        lower = scene.importance.lower
        masks = mask_report(scene, one, labels)
        found = {
            "faithfulness": faithfulness(trained.model),
            "relative_faithfulness": relative_faithfulness(trained.model),
            "error": masks.error,
            "error_unrecovered": masks.error_unrecovered,
            "pgd": dict(zip(map(str, adversary_steps), pgd_curve(scene, two, adversary_steps))),
            "hidden": hidden_report(scene, three),
            "l0": l0(lower),
            "alive": {name: jnp.sum(on, axis=-1) for name, on in alive(lower, threshold).items()},
            "spectrum": spectrum(lower),
        }
        return found | ({"ce": masks.ce, "ce_unrecovered": masks.ce_unrecovered} if labels is not None else {})

    return jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), figures(trained, x, key))


def linearity_of(config: DecompositionConfig, trained: Trained, x: Array, **options: Any) -> LinearityReport:
    """The linearity report of a trained decomposition on `x`, its Δ among the parts where it was trained with one."""
    importance = jax.jit(lambda trained, x: trained.importance(x).lower)(trained, x)
    return decomposition_linearity(trained.model, importance, x, delta=config.delta, **options)


def plain(report: LinearityReport) -> list[dict[str, Any]]:
    """A linearity report as JSON values, row by row."""
    rows = []
    for name, value in report.rows():
        if isinstance(value, Figure):
            rows.append({"name": name, "raw": value.raw, "normalised": value.normalised, "excess": value.excess})
        else:
            rows.append({"name": name, "value": value})
    return rows
