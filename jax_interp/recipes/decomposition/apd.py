"""APD runs: components of rank m span all matrices, and the k largest attributions of a batch are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from jax_interp.core.errors import UserError
from jax_interp.decomposition.apd import APDConfig, TrainedAPD, load_apd, save_apd, train_apd, with_threshold
from jax_interp.decomposition.apd.evaluate import evaluate_apd, features_of_apd, linearity_of_apd
from jax_interp.decomposition.apd.losses import apd_losses
from jax_interp.decomposition.apd.spectrum import products, spectra
from jax_interp.decomposition.apd.train import APD as TRAINER
from jax_interp.decomposition.apd.train import initial_decomposition
from jax_interp.decomposition.evaluate import report_rows
from jax_interp.decomposition.linearity import GridSettings, LinearitySettings, oracle_decomposition
from jax_interp.decomposition.metrics import recovery
from jax_interp.recipes.decomposition.method import RUN_METHODS, HeldOut, Inputs, RunMethod
from jax_interp.surgery import Model
from jax_interp.toys import known_features, target_forms
from jax_interp.training import Log, Place, RunTarget
from jax_interp.training.planning.planned import PlannedStep

if TYPE_CHECKING:
    from jax_interp.recipes.decomposition.config import DecompositionRunConfig, PageOptions


@RUN_METHODS.register
class APD(RunMethod[APDConfig, TrainedAPD]):
    """Attribution-based parameter decomposition, for toys only."""

    settings = APDConfig
    figures = (
        "relative_faithfulness", "losses", "error", "error_unrecovered", "l0", "alive", "rate", "singular_values",
        "linearity",
    )  # fmt: skip

    def check_config(self, config: DecompositionRunConfig) -> None:
        if config.threshold:
            raise UserError(
                f"threshold={config.threshold} is for importances; APD has none, it keeps the top k of attributions"
            )
        if ":" not in config.target:
            raise UserError(
                f"target={config.target!r}: APD decomposes toys ({target_forms()}). Its attributions cost a backward "
                "pass for each output, and a language model has its vocabulary of outputs"
            )

    def check_inputs(self, settings: APDConfig, inputs: Inputs) -> None:
        assert inputs.sample is not None  # `check_config` accepts toys only
        x = inputs.sample(jax.random.key(0))
        jax.eval_shape(lambda model: apd_losses(settings, initial_decomposition(settings, model), x), inputs.model)

    def train(
        self,
        settings: APDConfig,
        config: DecompositionRunConfig,
        inputs: Inputs,
        *,
        run: RunTarget,
        place: Place,
        log: Log,
    ) -> TrainedAPD:
        """Train, and set the threshold that keeps the top k on the rows on which figures are measured."""
        assert inputs.sample is not None
        model = train_apd(settings, inputs.model, sample=inputs.sample, run=run, place=place, log=log)
        return with_threshold(settings, model, inputs.held_out(config.evaluate_rows)[0])

    def planned(
        self,
        settings: APDConfig,
        model: Model,
        example: PyTree,
        tokens: int,
        sample: Callable[[Key[Array, ""]], Array] | None = None,
    ) -> PlannedStep:
        return TRAINER.planned(settings, model, example, tokens, sample)

    def save(self, path: Path, trained: TrainedAPD, settings: APDConfig) -> None:
        save_apd(path, trained, settings)

    def load(self, path: Path, target: Model) -> TrainedAPD:
        return load_apd(path, target)[0]

    def measure(
        self, settings: APDConfig, config: DecompositionRunConfig, trained: TrainedAPD, inputs: Inputs
    ) -> dict[str, Any]:
        x, _ = inputs.held_out(config.evaluate_rows)
        result, known = evaluate_apd(settings, trained, x), known_features(inputs.model)
        oracle = None if known is None else oracle_decomposition(trained.model, known.parts)
        x, linearity = x[: config.linearity_rows], LinearitySettings(adversary_steps=config.adversary_steps)
        result["linearity"] = report_rows(linearity_of_apd(trained, x, oracle=oracle, settings=linearity))
        if known is not None:
            active = [k for k in (1, 2) if k <= known.count]
            grid = GridSettings(samples=32, cap=16, feature_sets=32)
            result |= features_of_apd(trained, known.count, active=active, oracle=oracle, settings=grid)
            for name in set(known.directions).intersection(trained.model.names):
                found = recovery(products(trained.model, trained.rank)[name], known.directions[name])
                result |= {"mmcs": float(found.mmcs), "ml2r": float(found.ml2r)}
        return result

    def page(
        self,
        result: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        name: str,
        trained: TrainedAPD,
        held_out: HeldOut,
        options: PageOptions,
    ) -> str:
        from jax_interp.views.apd_report import render

        return render(result, records, name, _cards(trained, held_out, options))


def _cards(trained: TrainedAPD, held_out: HeldOut, options: PageOptions) -> dict[str, Any]:
    """The components that are kept most often, for `views.component_cards`. For every matrix it has what the first
    singular pair of each component reads and writes."""
    kept = jax.jit(lambda trained, x: jnp.sum(trained.kept(x), axis=0))
    count = np.sum([np.asarray(kept(trained, x)) for x, _ in held_out.batches], axis=0)
    rows = sum(len(x) for x, _ in held_out.batches)
    best = np.argsort(-count, kind="stable")
    best = best[count[best] > 0][: options.components or 40]
    cards = [{"component": int(c), "rate": float(count[c] / rows)} for c in best]
    common = {"C": len(count), "alive": int(np.sum(count > 0)), "cards": cards}
    matrices = [
        {"name": name, "V": one.reads[best], "U": one.writes[best]} | common
        for name, one in spectra(trained.model, trained.rank).items()
    ]
    return {"rows": rows, "matrices": matrices}
