"""The recipe of `train-dictionary`: train a dictionary or a grid of dictionaries, measure them, and write a page.

    figures = run_dictionary(DictionaryRunConfig(variants.topk("blocks.2.resid_post", k=32)), "runs/sae")

It writes the files of `recipes.dictionary` or `recipes.dictionary_sweep`, and `report.html`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax_interp.core import config_json
from jax_interp.core.atomic_write import atomic_write
from jax_interp.dictionaries.training.config import CrossLayerConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig, inputs_for, measure, train
from jax_interp.recipes.dictionary_sweep import run_sweep
from jax_interp.training.metrics import read_log
from jax_interp.views import tables


def run_dictionary(config: DictionaryRunConfig, run_dir: Path | str, *, quiet: bool = False) -> dict[str, Any]:
    """Train one dictionary, measure it and write its page.

    Args:
      config: the run, without a sweep.
      run_dir: the run directory. If it has a stopped run, this run is resumed.
      quiet: show no progress.

    Returns:
      The figures, which are also in `evaluation.json`.

    Raises:
      UserError: the model, the addresses or the text do not fit the config, or the run directory holds another run.
    """
    directory = Path(run_dir)
    inputs = inputs_for(config)
    dictionary = train(config, directory, inputs, quiet=quiet)
    if not quiet:
        print("evaluating on held-out text ...", flush=True)
    figures = measure(config, dictionary, inputs, directory / "evaluation.json").to_json()
    rows, values = tables.evaluation_rows(figures), tables.value_rows(figures)
    _write_page(config, directory, title(config), evaluation=figures, evaluation_rows=rows, values=values)
    return figures


def run_grid(config: DictionaryRunConfig, run_dir: Path | str, *, quiet: bool = False) -> list[dict[str, Any]]:
    """Train the grid of dictionaries of `config.sweep`, measure each and write a page about all of them.

    Args:
      config: the run, with a sweep.
      run_dir: the run directory. If it has a stopped run, this run is resumed.
      quiet: show no progress.

    Returns:
      A description and the figures of each dictionary, which are also in `sweep.json`.

    Raises:
      UserError: in the same cases as `run_dictionary`.
    """
    directory = Path(run_dir)
    rows = run_sweep(config, directory, inputs_for(config), quiet=quiet)
    _write_page(config, directory, title(config, len(rows)), members=rows)
    return rows


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


def _write_page(config: DictionaryRunConfig, directory: Path, heading: str, **parts: Any) -> None:
    from jax_interp.views.run_report import RunPage, render_run

    page = RunPage(
        title=heading,
        description=description(config),
        config=config_json.dumps(config),
        records=read_log(directory / "metrics.jsonl"),
        k=config.dictionary.activation.k if config.sweep is None else None,
        sources=len(config.dictionary.reads) if isinstance(config.dictionary, CrossLayerConfig) else 1,
        **parts,
    )
    atomic_write(directory / "report.html", render_run(page))
