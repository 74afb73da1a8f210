"""APD in `decompose`: components of rank m that span all matrices, the top k of a batch kept by their attributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_interp.decomposition.apd import APDConfig, TrainedAPD, load_apd, save_apd, train_apd, with_threshold
from jax_interp.decomposition.apd.evaluate import evaluate_apd, features_of_apd, linearity_of_apd
from jax_interp.decomposition.apd.losses import apd_losses
from jax_interp.decomposition.apd.spectrum import products, spectra
from jax_interp.decomposition.apd.train import initial_decomposition
from jax_interp.decomposition.evaluate import report_rows
from jax_interp.decomposition.linearity import oracle_decomposition
from jax_interp.decomposition.metrics import recovery
from jax_interp.recipes.decomposition import DecompositionRunConfig, HeldOut, Inputs
from jax_interp.recipes.decomposition_method import Method
from jax_interp.recipes.decomposition_page import Shown
from jax_interp.toys import known_features
from jax_interp.training import Log, RunTarget


def check(settings: APDConfig, inputs: Inputs) -> None:
    assert inputs.sample is not None  # of toys, which the config asks for
    x = inputs.sample(jax.random.key(0))
    jax.eval_shape(lambda model: apd_losses(settings, initial_decomposition(settings, model), x), inputs.model)


def train(
    settings: APDConfig, config: DecompositionRunConfig, inputs: Inputs, *, run: RunTarget, log: Log
) -> TrainedAPD:
    """The trained components, and the threshold that keeps the top k of the rows that figures are of."""
    assert inputs.sample is not None
    model = train_apd(settings, inputs.model, sample=inputs.sample, run=run, log=log)
    return with_threshold(settings, model, inputs.held_out(config.evaluate_rows)[0])


def measure(settings: APDConfig, config: DecompositionRunConfig, trained: TrainedAPD, inputs: Inputs) -> dict[str, Any]:
    """Every figure of the trained decomposition, as JSON values."""
    x, _ = inputs.held_out(config.evaluate_rows)
    result, known = evaluate_apd(settings, trained, x), known_features(inputs.model)
    oracle = None if known is None else oracle_decomposition(trained.model, known.parts)
    report = linearity_of_apd(
        trained, x[: config.linearity_rows], oracle=oracle, adversary_steps=config.adversary_steps
    )
    result["linearity"] = report_rows(report)
    if known is not None:
        active = [k for k in (1, 2) if k <= known.count]
        result |= features_of_apd(
            trained, known.count, active=active, oracle=oracle, samples=32, cap=16, feature_sets=32
        )
        for name in set(known.directions).intersection(trained.model.names):
            found = recovery(products(trained.model, trained.rank)[name], known.directions[name])
            result |= {"mmcs": float(found.mmcs), "ml2r": float(found.ml2r)}
    return result


def page(
    result: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    name: str,
    trained: TrainedAPD,
    held_out: HeldOut,
    shown: Shown,
) -> str:
    """The page of a run, from its evaluation and its log."""
    from jax_interp.views.apd_report import render

    return render(result, records, name, strongest(trained, held_out, shown))


def strongest(trained: TrainedAPD, held_out: HeldOut, shown: Shown) -> dict[str, Any]:
    """The components that are kept most often, as `views.component_cards` takes them: in every matrix what the first
    singular pair of each reads and writes."""
    kept = jax.jit(lambda trained, x: jnp.sum(trained.kept(x), axis=0))
    count = np.sum([np.asarray(kept(trained, x)) for x, _ in held_out.batches], axis=0)
    rows = sum(len(x) for x, _ in held_out.batches)
    best = np.argsort(-count, kind="stable")
    best = best[count[best] > 0][: shown.components or 40]
    cards = [{"component": int(c), "rate": float(count[c] / rows)} for c in best]
    matrices = [
        {
            "name": name, "C": len(count), "alive": int(np.sum(count > 0)), "cards": cards,
            "V": one.reads[best], "U": one.writes[best],
        }
        for name, one in spectra(trained.model, trained.rank).items()
    ]  # fmt: skip
    return {"rows": rows, "matrices": matrices}


APD = Method(
    check=check,
    train=train,
    save=save_apd,
    load=load_apd,
    measure=measure,
    figures=("relative_faithfulness", "losses", "error", "error_unrecovered", "l0", "alive", "rate",
             "singular_values", "linearity"),
    page=page,
)  # fmt: skip
