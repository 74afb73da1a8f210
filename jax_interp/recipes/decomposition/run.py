"""A whole decomposition run; and a function that writes the page of a finished run again."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.core.processes import to_host
from jax_interp.core.terminal import print_text
from jax_interp.recipes.decomposition.config import MAY_DIFFER, DecompositionRunConfig, PageOptions
from jax_interp.recipes.decomposition.inputs import inputs_for
from jax_interp.recipes.decomposition.method import Inputs, method_for
from jax_interp.recipes.evaluations import newest_evaluation, write_evaluation
from jax_interp.recipes.run_inputs import same_inputs
from jax_interp.training import Log, Run, SaveTo, open_run
from jax_interp.training.metrics import read_log
from jax_interp.training.parent import about_parent
from jax_interp.training.sharding import check_rows

DECOMPOSITION, PAGE = "decomposition.safetensors", "report.html"


def decompose(
    config: DecompositionRunConfig,
    run_dir: Path | str,
    *,
    mesh: Mesh | None = None,
    quiet: bool = False,
    parent: Path | str | None = None,
    log: Log = Log(),
) -> dict[str, Any]:
    """Train a decomposition, save it, measure it and write its page.

    Args:
      config: the run.
      run_dir: the run directory. If it has a stopped run, this run is resumed.
      mesh: the mesh to train on (`training.sharding.mesh_of`). None: one device. A run may be resumed on another mesh.
      quiet: show no progress.
      parent: `RUN` or `RUN@STEP`, a checkpoint that a new run starts from (see `training.parent`).
      log: where the log goes besides `metrics.jsonl`, and what happens at a NaN. How often it is
        written is in the config.

    Returns:
      All figures, which are also in the newest `evaluation*.json`.

    Raises:
      UserError: the target, the matrices or the amount of text do not fit the config, or the run directory holds
        another run. This is checked before training, and no directory is made.
    """
    settings, method = config.decomposition, method_for(config.decomposition)
    log = dataclasses.replace(log, quiet=quiet)
    if mesh is not None:
        check_rows(settings.batch, mesh)
    inputs = inputs_for(config)
    inputs.held_out(config.evaluate_rows)  # raises where there are too few rows
    method.check_inputs(settings, inputs)
    with opened(config, run_dir, parent) as run:
        trained = train(config, inputs, run, mesh=mesh, log=log)
        method.save(run.directory / DECOMPOSITION, trained, settings)
        if mesh is not None:  # figures are measured on one device
            trained = jax.tree.map(jnp.asarray, to_host(trained))
        if not quiet:
            print_text("measuring ...")
        figures = method.measure(settings, config, trained, inputs)
        result = {"target": config.target, "source": settings.source} | about_parent(run.parent) | figures
        if inputs.text_tokens is not None:
            seen = settings.steps * settings.batch * config.context
            result["data"] = {"tokens": seen, "text_tokens": inputs.text_tokens}
        write_evaluation(run.directory, result)
        _write_page(config, run.directory, result, trained, inputs, PageOptions())
    return result


def opened(
    config: DecompositionRunConfig, run_dir: Path | str, parent: Path | str | None = None
) -> contextlib.AbstractContextManager[Run]:
    """The run directory of a decomposition, open and locked within a `with` block.

    Args:
      config: the run. Between calls that continue one run only the fields in `MAY_DIFFER` may change.
      run_dir: the run directory.
      parent: `RUN` or `RUN@STEP`, a checkpoint that a new run starts from.

    Raises:
      UserError: `run_dir` holds a run with another config or another parent, or another process works on it.
    """
    return open_run(run_dir, config, may_differ=MAY_DIFFER, parent=parent)


def train(
    config: DecompositionRunConfig, inputs: Inputs, run: Run, *, mesh: Mesh | None = None, log: Log = Log()
) -> PyTree:
    """Train a decomposition in an open run, from the last checkpoint if there is one.

    Args:
      config: the run's config.
      inputs: its target and data.
      run: the run, as `opened(config, run_dir)` gives it.
      mesh: the mesh to train on (`training.sharding.mesh_of`). None: one device. A run may be resumed on another mesh.
      log: what is shown, and where else the log goes. `config.log_every` says how often.

    Returns:
      The trained decomposition, a `Trained` or a `TrainedAPD`.

    Raises:
      UserError: the run began with other weights or another text.
    """
    same_inputs(run.directory, inputs.fingerprint)
    saving = SaveTo(run, every=config.checkpoint_every, keep=2)
    log, settings = dataclasses.replace(log, every=config.log_every), config.decomposition
    return method_for(settings).train(settings, config, inputs, run=saving, place=mesh, log=log)


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
    read = inputs.for_page(config.page.sequences(config.context))
    if method.component_page(config, directory, trained, read) is not None:
        result = {**result, "component_page": True}
    records, name = read_log(directory / "metrics.jsonl"), directory.absolute().name
    return atomic_write(directory / PAGE, method.page(result, records, name, trained, held_out, options))


def _finished(directory: Path) -> tuple[DecompositionRunConfig, dict[str, Any]]:
    """The config and the figures of a finished run. Raises UserError if the directory has no finished run."""
    if not directory.is_dir():
        raise UserError(f"no directory {directory}: give a run directory of decompose")
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds no run: there is no config.json in it")
    config = config_json.load(DecompositionRunConfig, directory)
    evaluation = newest_evaluation(directory)
    missing = [name for name in (DECOMPOSITION, evaluation.name) if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{directory} is a run that has not finished: it has no {' and no '.join(missing)}; "
            f"`jax-interp decompose {directory}` resumes it"
        )
    result = read_json(evaluation, nonfinite=True)
    wanted = ("target", "source", *method_for(config.decomposition).figures)
    lacks = [name for name in wanted if name not in result]
    if lacks:
        raise UserError(f"{evaluation} has no {', '.join(lacks)}: `jax-interp decompose {directory}` measures again")
    return config, result
