"""A whole decomposition run; and a function that writes the page of a finished run again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.recipes.decomposition.config import MAY_DIFFER, DecompositionRunConfig, PageOptions
from jax_interp.recipes.decomposition.inputs import inputs_for
from jax_interp.recipes.decomposition.method import Inputs, method_for
from jax_interp.recipes.run_inputs import same_inputs
from jax_interp.training import Log, SaveTo, open_run
from jax_interp.training.metrics import read_log

DECOMPOSITION, EVALUATION, PAGE = "decomposition.safetensors", "evaluation.json", "report.html"


def decompose(config: DecompositionRunConfig, run_dir: Path | str, *, quiet: bool = False) -> dict[str, Any]:
    """Train a decomposition, save it, measure it and write its page.

    Args:
      config: the run.
      run_dir: the run directory. If it has a stopped run, this run is resumed.
      quiet: show no progress.

    Returns:
      All figures, which are also in `evaluation.json`.

    Raises:
      UserError: the target, the matrices or the amount of text do not fit the config, or the run directory holds
        another run. This is checked before training, and no directory is made.
    """
    directory, settings, method = Path(run_dir), config.decomposition, method_for(config.decomposition)
    inputs = inputs_for(config)
    inputs.held_out(config.evaluate_rows)  # raises where there are too few rows
    method.check_inputs(settings, inputs)
    trained = train(config, inputs, directory, quiet=quiet)
    method.save(directory / DECOMPOSITION, trained, settings)
    if not quiet:
        print("measuring ...", flush=True)
    figures = method.measure(settings, config, trained, inputs)
    result = {"target": config.target, "source": settings.source} | figures
    atomic_write(directory / EVALUATION, json.dumps(result, indent=2) + "\n")
    _write_page(config, directory, result, trained, inputs, PageOptions())
    return result


def train(config: DecompositionRunConfig, inputs: Inputs, run_dir: Path | str, *, quiet: bool = False) -> PyTree:
    """Train a decomposition in a run directory, from the last checkpoint if there is one.

    Args:
      config: the run. Between calls that continue one run only the fields in `MAY_DIFFER` may change.
      inputs: its target and data.
      run_dir: the run directory.
      quiet: show no progress.

    Returns:
      The trained decomposition, a `Trained` or a `TrainedAPD`.

    Raises:
      UserError: the run directory holds another run, or a run with other weights or another text.
    """
    with open_run(run_dir, config, may_differ=MAY_DIFFER) as run:
        same_inputs(run.directory, inputs.fingerprint)
        saving = SaveTo(run, every=config.checkpoint_every, keep=2)
        log = Log(every=config.log_every, quiet=quiet)
        settings = config.decomposition
        return method_for(settings).train(settings, config, inputs, run=saving, log=log)


def rewrite_page(run_dir: Path | str, options: PageOptions | None = None) -> Path:
    """Write the page of a finished run again. Nothing is trained or measured.

    Args:
      run_dir: the directory of a finished run.
      options: the amount of content on the page; None for the default.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no finished run, or its weights or text have changed since.
    """
    directory = Path(run_dir)
    config, result = _finished(directory)
    inputs = inputs_for(config)
    same_inputs(directory, inputs.fingerprint, begins=False)
    trained = method_for(config.decomposition).load(directory / DECOMPOSITION, inputs.model)
    return _write_page(config, directory, result, trained, inputs, options or PageOptions())


def _write_page(
    config: DecompositionRunConfig,
    directory: Path,
    result: Mapping[str, Any],
    trained: PyTree,
    inputs: Inputs,
    options: PageOptions,
) -> Path:
    method, held_out = method_for(config.decomposition), inputs.for_page(options.sequences)
    records, name = read_log(directory / "metrics.jsonl"), directory.absolute().name
    return atomic_write(directory / PAGE, method.page(result, records, name, trained, held_out, options))


def _finished(directory: Path) -> tuple[DecompositionRunConfig, dict[str, Any]]:
    """The config and the figures of a finished run. Raises UserError if the directory has no finished run."""
    if not directory.is_dir():
        raise UserError(f"no directory {directory}: give a run directory of decompose")
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds no run: there is no config.json in it")
    config = config_json.load(DecompositionRunConfig, directory)
    missing = [name for name in (DECOMPOSITION, EVALUATION) if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{directory} is a run that has not finished: it has no {' and no '.join(missing)}; "
            f"`jax-interp decompose {directory}` resumes it"
        )
    try:
        result = json.loads((directory / EVALUATION).read_text())
    except ValueError as error:
        raise UserError(f"{directory / EVALUATION} is not JSON: {error}") from error
    wanted = ("target", "source", *method_for(config.decomposition).figures)
    lacks = [name for name in wanted if not isinstance(result, dict) or name not in result]
    if lacks:
        raise UserError(
            f"{directory / EVALUATION} has no {', '.join(lacks)}: `jax-interp decompose {directory}` measures again"
        )
    return config, result
