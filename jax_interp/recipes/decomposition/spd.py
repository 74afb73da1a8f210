"""Runs of SPD and its successors: components with a causal importance function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from jax_interp.core.processes import to_host
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.decomposition.evaluate import composites_of, evaluate, linearity_of, report_rows
from jax_interp.decomposition.linearity import GridSettings, LinearitySettings, oracle_decomposition
from jax_interp.decomposition.matrices import is_stacked
from jax_interp.decomposition.metrics import one_hot_inputs, pattern_errors, recovery
from jax_interp.decomposition.storage import load_decomposition, save_decomposition
from jax_interp.decomposition.train import SPD as TRAINER
from jax_interp.decomposition.train import Trained, initial_decomposition, train_decomposition
from jax_interp.recipes.decomposition.method import RUN_METHODS, HeldOut, Inputs, RunMethod
from jax_interp.surgery import Model
from jax_interp.toys import KnownFeatures, known_features
from jax_interp.training import Log, Place, RunTarget
from jax_interp.training.planning.planned import PlannedStep

if TYPE_CHECKING:
    from jax_interp.recipes.decomposition.config import DecompositionRunConfig, PageOptions


@RUN_METHODS.register
class SPD(RunMethod[DecompositionConfig, Trained]):
    """SPD and its successors."""

    settings = DecompositionConfig
    figures = ("relative_faithfulness", "error", "error_unrecovered", "pgd", "l0", "alive", "spectrum", "linearity")

    def check_inputs(self, settings: DecompositionConfig, inputs: Inputs) -> None:
        jax.eval_shape(partial(initial_decomposition, settings), inputs.model)

    def train(
        self,
        settings: DecompositionConfig,
        config: DecompositionRunConfig,
        inputs: Inputs,
        *,
        run: RunTarget,
        place: Place,
        log: Log,
    ) -> Trained:
        data = {"sample": inputs.sample, "batch_at": inputs.batch_at}
        return train_decomposition(settings, inputs.model, **data, run=run, place=place, log=log)

    def planned(
        self,
        settings: DecompositionConfig,
        model: Model,
        example: PyTree,
        tokens: int,
        sample: Callable[[Key[Array, ""]], Array] | None = None,
    ) -> PlannedStep:
        return TRAINER.planned(settings, model, example, tokens, sample)

    def save(self, path: Path, trained: Trained, settings: DecompositionConfig) -> None:
        save_decomposition(path, trained, settings)

    def load(self, path: Path, target: Model) -> Trained:
        return load_decomposition(path, target)[0]

    def measure(
        self, settings: DecompositionConfig, config: DecompositionRunConfig, trained: Trained, inputs: Inputs
    ) -> dict[str, Any]:
        x, labels = inputs.held_out(config.evaluate_rows)
        threshold, steps = config.threshold, config.adversary_steps
        result = evaluate(settings, trained, x, labels=labels, adversary_steps=steps, threshold=threshold)
        known = known_features(inputs.model)
        oracle = None if known is None else oracle_decomposition(trained.model, known.parts)
        # A language model costs more and is measured at fewer points.
        linearity = LinearitySettings() if labels is None else LinearitySettings(2, (1, 4), (20,), pairs=16)
        x = x[: config.linearity_rows]
        rows = linearity_of(settings, trained, x, oracle=oracle, threshold=threshold, settings=linearity)
        result["linearity"] = report_rows(rows)
        if known is None:
            return result
        return result | measure_known_features(known, settings, trained, oracle, threshold)

    def component_page(
        self, config: DecompositionRunConfig, directory: Path, trained: Trained, held_out: HeldOut
    ) -> Path | None:
        from jax_interp.dashboards.options import Names
        from jax_interp.recipes.decomposition.component_page import write_component_page

        names = Names("component", f"Components of {config.target}", config.target, f"{config.text}, held out")
        return write_component_page(directory, trained, held_out, config.page, names)

    def page(
        self,
        result: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        name: str,
        trained: Trained,
        held_out: HeldOut,
        options: PageOptions,
    ) -> str:
        from jax_interp.recipes.decomposition.component_cards import component_cards
        from jax_interp.views.decomposition_report import render

        return render(result, records, name, component_cards(trained, held_out, options))


def measure_known_features(
    known: KnownFeatures,
    settings: DecompositionConfig,
    trained: Trained,
    oracle: Decomposed | None,
    threshold: float = 0.0,
) -> dict[str, Any]:
    """Measure the decomposition of a toy against its known features.

    Args:
      known: the toy's features.
      settings: the method's config.
      trained: the decomposition.
      oracle: the decomposition into the known features, for comparison.
      threshold: a component is important if its importance is above this.

    Returns:
      `probe` (importances on one-hot inputs, by the address of the matrix), `pattern_errors` (the difference between
      these and the expected patterns), `composites` (mechanistic faithfulness on composite inputs), and, if the
      directions of the features are known, `mmcs` and `ml2r`.
    """
    model, active = trained.model, [k for k in (1, 2) if k <= known.count]
    options = {"threshold": threshold, "settings": GridSettings(samples=32, cap=16, feature_sets=32)}
    importance = to_host(trained.importance(one_hot_inputs(known.count)).lower)
    probes = {name: np.asarray(g, float).round(4).tolist() for name, g in importance.items()}
    result: dict[str, Any] = {
        "probe": {
            name.replace("*", str(layer)): rows
            for name, g in probes.items()
            for layer, rows in enumerate(g if is_stacked(name) else [g])
        },
        "pattern_errors": pattern_errors(model, importance, known.patterns),
        "composites": composites_of(settings, trained, known.count, active=active, oracle=oracle, **options),
    }
    for name in set(known.directions).intersection(model.names):
        found = recovery(model.of(name), known.directions[name])
        result |= {"mmcs": float(found.mmcs), "ml2r": float(found.ml2r)}
    return result
