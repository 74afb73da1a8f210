"""`jax-interp train-dictionary CONFIG`: train a sparse dictionary on a model's activations, save it and measure it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.cli.run_options import RunOptions
from jax_interp.core.terminal import print_text
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.train_dictionary import run_dictionary, run_grid, title
from jax_interp.views import tables


@dataclass(frozen=True, kw_only=True)
class TrainDictionary(RunOptions):
    """Train a sparse dictionary on values of a model, save it as safetensors and JSON, and evaluate it.

    CONFIG is a name (stdlib_small_topk, ...), a .py file with a CONFIG, a config.json or a run directory. The options
    below override its numbers and names. To change the kind of activation, the kinds of losses, a sweep or resampling,
    give your own .py file. The same command resumes a run that was stopped or killed, and the result is the same bit
    for bit.
    """

    config: Annotated[DictionaryRunConfig, tyro.conf.arg(name="")]


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp train-dictionary` with these arguments. Returns the exit code."""
    found, rest = resolve(DictionaryRunConfig, argv, command="train-dictionary", shown_in_help="stdlib_small_topk")
    defaults = TrainDictionary(config=found.config)
    options = parse(TrainDictionary, rest, command="train-dictionary", usage="CONFIG", default=defaults)
    directory = options.directory(found)
    if options.config.sweep is not None:
        rows, data = run_grid(options.config, directory, **options.of_recipe())
        _print_grid(rows, title(options.config, len(rows)))
        print_text(tables.passes(data))
        print_text(f"saved in {directory}: members/, sweep.json, metrics.jsonl, report.html")
        return 0
    figures = run_dictionary(options.config, directory, **options.of_recipe())
    tables.print_evaluation(figures, title=title(options.config))
    print_text(tables.passes(figures["data"]))
    page = ", features.html" if options.config.page.features else ""
    print_text(f"saved in {directory}: dictionary/, its evaluation, metrics.jsonl, report.html{page}")
    return 0


def _print_grid(rows: Sequence[dict[str, Any]], heading: str) -> None:
    shown = [
        (
            row["name"],
            ", ".join(filter(None, (row["series"], row["label"]))),
            *(tables.format_number(row[name]) for name in ("l0", "fvu", "recovered", "dead")),
        )
        for row in rows
    ]
    right = [(name, "right") for name in ("L0", "FVU", "recovered, of mean", "dead")]
    tables.print_table(["member", "what", *right], shown, title=heading)
