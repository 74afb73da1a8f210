"""SPD and its successors in `decompose`: components with an importance function."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np

from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.evaluate import composites_of, evaluate, linearity_of, report_rows
from jax_interp.decomposition.linearity import oracle_decomposition
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.decomposition.metrics import one_hot_inputs, pattern_errors, recovery
from jax_interp.decomposition.storage import load_decomposition, save_decomposition
from jax_interp.decomposition.train import Trained, initial_decomposition, train_decomposition
from jax_interp.recipes.decomposition import DecompositionRunConfig, Inputs
from jax_interp.recipes.decomposition_method import Method
from jax_interp.recipes.decomposition_page import page
from jax_interp.toys import KnownFeatures, known_features
from jax_interp.training import Log, RunTarget


def check(settings: DecompositionConfig, inputs: Inputs) -> None:
    jax.eval_shape(partial(initial_decomposition, settings), inputs.model)


def train(
    settings: DecompositionConfig, config: DecompositionRunConfig, inputs: Inputs, *, run: RunTarget, log: Log
) -> Trained:
    return train_decomposition(settings, inputs.model, sample=inputs.sample, batch_at=inputs.batch_at, run=run, log=log)


def measure(
    settings: DecompositionConfig, config: DecompositionRunConfig, trained: Trained, inputs: Inputs
) -> dict[str, Any]:
    """Every figure of the trained decomposition, as JSON values."""
    x, labels = inputs.held_out(config.evaluate_rows)
    steps, threshold = config.adversary_steps, config.threshold
    result = evaluate(settings, trained, x, labels=labels, adversary_steps=steps, threshold=threshold)
    few = {"samples": 2, "ks": (1, 4), "adversary_steps": (20,), "pairs": 16} if labels is not None else {}
    known = known_features(inputs.model)
    oracle = None if known is None else oracle_decomposition(trained.model, known.parts)
    x = x[: config.linearity_rows]
    result["linearity"] = report_rows(linearity_of(settings, trained, x, oracle=oracle, threshold=threshold, **few))
    return result if known is None else result | against(known, settings, trained, oracle, threshold)


def against(
    known: KnownFeatures,
    settings: DecompositionConfig,
    trained: Trained,
    oracle: Decomposed | None,
    threshold: float = 0.0,
) -> dict[str, Any]:
    """Of a toy: its importances on one-hot probes by concrete address, how far they are from the patterns expected,
    mechanistic faithfulness on composite inputs, and how well the directions of TMS were found."""
    model, active = trained.model, [k for k in (1, 2) if k <= known.count]
    few = {"threshold": threshold, "samples": 32, "cap": 16, "feature_sets": 32}
    importance = jax.device_get(trained.importance(one_hot_inputs(known.count)).lower)
    probes = {name: np.asarray(g, float).round(4).tolist() for name, g in importance.items()}
    result: dict[str, Any] = {
        "probe": {
            name.replace("*", str(layer)): rows
            for name, g in probes.items()
            for layer, rows in enumerate(g if is_stacked(name) else [g])
        },
        "pattern_errors": pattern_errors(model, importance, known.patterns),
        "composites": composites_of(settings, trained, known.count, active=active, oracle=oracle, **few),
    }
    for name in set(known.directions).intersection(model.names):
        found = recovery(model.of(name), known.directions[name])
        result |= {"mmcs": float(found.mmcs), "ml2r": float(found.ml2r)}
    return result


SPD = Method(
    check=check,
    train=train,
    save=save_decomposition,
    load=load_decomposition,
    measure=measure,
    figures=("relative_faithfulness", "error", "error_unrecovered", "pgd", "l0", "alive", "spectrum", "linearity"),
    page=page,
)
