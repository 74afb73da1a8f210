"""`jax-interp train-dictionary CONFIG`: a sparse dictionary on a model's activations, saved and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.core import config_json as configs
from jax_interp.core.atomic_write import atomic_write
from jax_interp.dictionaries.training.config import CrossLayerConfig
from jax_interp.recipes.dictionary import DictionaryRunConfig, Inputs, inputs_for, measure, train
from jax_interp.recipes.dictionary_sweep import run_sweep
from jax_interp.training.metrics import read_log
from jax_interp.views import tables


@dataclass(frozen=True)
class TrainDictionary:
    """Train a sparse dictionary on values of a model, save it as safetensors and JSON, and evaluate it.

    CONFIG is a name (stdlib_small_topk, ...), a .py file with a CONFIG, a config.json or a run directory. The numbers
    and names listed below can be overridden; the kinds of activation and of losses, and a sweep or resampling, are as
    in CONFIG: give a .py file of your own for others. Stopped or killed, the same command goes on and ends with the
    same bits.
    """

    config: Annotated[DictionaryRunConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Where the run is kept: runs/<config name>, or the run directory that was given as CONFIG."""
    quiet: bool = False
    """No progress."""


def run(argv: Sequence[str]) -> int:
    found, rest = resolve(DictionaryRunConfig, argv, command="train-dictionary", shown_in_help="stdlib_small_topk")
    defaults = TrainDictionary(found.config)
    asked = parse(TrainDictionary, rest, command="train-dictionary", usage="CONFIG", default=defaults)
    directory = asked.run_dir or found.run_dir or Path("runs") / found.name
    inputs = inputs_for(asked.config)
    if asked.config.sweep is not None:
        return _sweep(asked, directory, inputs)
    sae = train(asked.config, directory, inputs, quiet=asked.quiet)
    if not asked.quiet:
        print("evaluating on held-out text ...", flush=True)
    result = measure(asked.config, sae, inputs, directory / "evaluation.json").to_json()
    title = _title(asked.config)
    tables.evaluation(result, title=title)
    rows, values = tables.evaluation_rows(result), tables.value_rows(result)
    _report(asked, directory, title, evaluation=result, evaluation_rows=rows, values=values)
    print(f"saved in {directory}: dictionary/, evaluation.json, metrics.jsonl, report.html")
    return 0


def _sweep(asked: TrainDictionary, directory: Path, inputs: Inputs) -> int:
    rows = run_sweep(asked.config, directory, inputs, quiet=asked.quiet)
    shown = [
        (
            row["name"],
            ", ".join(filter(None, (row["series"], row["label"]))),
            *(tables.figure(row[name]) for name in ("l0", "fvu", "recovered", "dead")),
        )
        for row in rows
    ]
    right = [(name, "right") for name in ("L0", "FVU", "recovered, of mean", "dead")]
    tables.show(["member", "what", *right], shown, title=f"{len(rows)} dictionaries: {_title(asked.config)}")
    _report(asked, directory, f"{len(rows)} dictionaries: {_title(asked.config)}", members=rows)
    print(f"saved in {directory}: members/, sweep.json, metrics.jsonl, report.html")
    return 0


def _title(config: DictionaryRunConfig) -> str:
    reads = (config.sweep and config.sweep.addresses) or config.dictionary.reads
    kind = "cross-layer " if isinstance(config.dictionary, CrossLayerConfig) else ""
    what = tables.named(reads, config.dictionary.writes)
    return f"{kind}{type(config.dictionary.activation).__name__}, {what} of {config.model}"


def _says(config: DictionaryRunConfig) -> str:
    features, reads = f"{config.dictionary.n_features:,} features", len(config.dictionary.reads)
    if isinstance(config.dictionary, CrossLayerConfig):
        later = {None: " and all later ones", 1: " alone"}
        to = later.get(config.dictionary.window, f" and later ones, at most {config.dictionary.window}")
        features = f"{reads} sources of {features}, each writing its own target{to}"
    return (
        f"{features}; {config.dictionary.steps:,} steps of {config.batch * config.context:,} tokens of {config.text}."
    )


def _report(asked: TrainDictionary, directory: Path, title: str, **parts: Any) -> None:
    from jax_interp.views.run_report import render_run

    config = asked.config
    page = render_run(
        title=title,
        says=_says(config),
        config=configs.dumps(config),
        records=read_log(directory / "metrics.jsonl"),
        k=getattr(config.dictionary.activation, "k", None) if config.sweep is None else None,
        sources=len(config.dictionary.reads) if isinstance(config.dictionary, CrossLayerConfig) else 1,
        **parts,
    )
    atomic_write(directory / "report.html", page)
