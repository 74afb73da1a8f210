"""The recipe of `train-dictionary`: train a dictionary or a grid of dictionaries, measure them, and write a page.

    figures = run_dictionary(DictionaryRunConfig(variants.topk("blocks.2.resid_post", k=32)), "runs/sae")

It writes the files of `recipes.dictionary` or `recipes.dictionary_sweep`, and `report.html`, which links to the page of
the features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.terminal import print_text
from jax_interp.dictionaries.training.config import CrossLayerConfig
from jax_interp.recipes.dictionary import (
    DictionaryRunConfig,
    data_seen,
    inputs_for,
    measure,
    opened,
    show_features,
    train,
)
from jax_interp.recipes.dictionary_sweep import run_sweep
from jax_interp.recipes.evaluations import write_evaluation
from jax_interp.training import Log, Run, on_mesh
from jax_interp.training.metrics import read_log
from jax_interp.views import tables


def run_dictionary(
    config: DictionaryRunConfig,
    run_dir: Path | str,
    *,
    mesh: Mesh | None = None,
    quiet: bool = False,
    parent: Path | str | None = None,
    log: Log = Log(),
) -> dict[str, Any]:
    """Train one dictionary, measure it and write its page.

    Args:
      config: the run, without a sweep.
      run_dir: the run directory. If it has a stopped run, this run is resumed.
      mesh: the mesh to train on (`training.sharding.mesh_of`). None: one device. A run may be resumed on another mesh.
      quiet: show no progress.
      parent: `RUN` or `RUN@STEP`, a checkpoint that a new run starts from (see `training.parent`).
      log: where the log goes besides `metrics.jsonl`, and what happens at a NaN. How often it is
        written is in the config.

    Returns:
      The figures, which are also in the newest `evaluation*.json`.

    Raises:
      UserError: the model, the addresses or the text do not fit the config, or the run directory holds another run.
    """
    log, inputs = dataclasses.replace(log, quiet=quiet), inputs_for(config, mesh)
    with opened(config, run_dir, parent) as run, on_mesh(mesh):
        dictionary = train(config, run, inputs, log=log)
        if not quiet:
            print_text("evaluating on held-out text ...")
        figures = measure(config, dictionary, inputs)
        write_evaluation(run.directory, figures)
        parts = {"evaluation_rows": tables.evaluation_rows(figures), "values": tables.value_rows(figures)}
        parts["features"] = show_features(config, run.directory, dictionary, inputs, quiet=quiet)
        _write_page(config, run, title(config), figures["data"], evaluation=figures, **parts)
    return figures


def run_grid(
    config: DictionaryRunConfig,
    run_dir: Path | str,
    *,
    mesh: Mesh | None = None,
    quiet: bool = False,
    parent: Path | str | None = None,
    log: Log = Log(),
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Train the grid of dictionaries of `config.sweep`, measure each and write a page about all of them.

    Args:
      config: the run, with a sweep.
      run_dir: the run directory. If it has a stopped run, this run is resumed.
      mesh: the mesh to train on (`training.sharding.mesh_of`). None: one device. A run may be resumed on another mesh.
      quiet: show no progress.
      parent: `RUN` or `RUN@STEP`, a checkpoint that a new run starts from (see `training.parent`).
      log: where the log goes besides `metrics.jsonl`, and what happens at a NaN. How often it is
        written is in the config.

    Returns:
      (a description and the figures of each dictionary, which are also in `sweep.json`; the tokens seen in training and
      those of the text, as `data_seen` counts them).

    Raises:
      UserError: in the same cases as `run_dictionary`.
    """
    log, inputs = dataclasses.replace(log, quiet=quiet), inputs_for(config, mesh)
    with opened(config, run_dir, parent) as run, on_mesh(mesh):
        rows = run_sweep(config, run, inputs, log=log)
        data = data_seen(config, inputs)
        _write_page(config, run, title(config, len(rows)), data, members=rows)
    return rows, data


def title(config: DictionaryRunConfig, count: int | None = None) -> str:
    """A short description of the dictionary or the grid, for the title of the page."""
    reads = (config.sweep and config.sweep.addresses) or config.dictionary.reads
    kind = "cross-layer " if isinstance(config.dictionary, CrossLayerConfig) else ""
    named = tables.reads_and_writes(reads, config.dictionary.writes)
    many = "" if count is None else f"{count} dictionaries: "
    return f"{many}{kind}{type(config.dictionary.activation).__name__}, {named} of {config.model}"


def description(config: DictionaryRunConfig) -> str:
    """Sizes and text of a run, in one sentence."""
    trained = config.dictionary
    features, reads = f"{trained.n_features:,} features", len(trained.reads)
    if isinstance(trained, CrossLayerConfig):
        later = {None: " and all later ones", 1: " alone"}
        targets = later.get(trained.window, f" and later ones, at most {trained.window}")
        features = f"{reads} sources of {features}, each writing its own target{targets}"
    return f"{features}; {trained.steps:,} steps of {config.batch * config.context:,} tokens of {config.text}."


def _write_page(config: DictionaryRunConfig, run: Run, heading: str, data: Mapping[str, int], **parts: Any) -> None:
    from jax_interp.views.run_report import RunPage, render_run

    began = "" if run.parent is None else f" It began at {run.parent}."
    page = RunPage(
        title=heading,
        description=f"{description(config)} It was {tables.passes(data)}.{began}",
        config=config_json.dumps(config),
        records=read_log(run.metrics),
        k=config.dictionary.activation.k if config.sweep is None else None,
        sources=len(config.dictionary.reads) if isinstance(config.dictionary, CrossLayerConfig) else 1,
        **parts,
    )
    atomic_write(run.directory / "report.html", render_run(page))
