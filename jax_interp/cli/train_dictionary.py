"""`jax-interp train-dictionary CONFIG`: a sparse dictionary on a model's activations, saved and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli import tables
from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.cli.dictionary_run import DictionaryRunConfig, inputs_for, measure, train


@dataclass(frozen=True)
class TrainDictionary:
    """Train a sparse dictionary on one value of a model, save it as safetensors and JSON, and evaluate it.

    CONFIG is a name (stdlib_small_topk, ...), a .py file with a CONFIG, a config.json or a run directory. Every field
    of it can be overridden below. Stopped or killed, the same command goes on and ends with the same bits.
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
    sae = train(asked.config, directory, inputs, quiet=asked.quiet)
    if not asked.quiet:
        print("evaluating on held-out text ...", flush=True)
    result = measure(asked.config, sae, inputs, directory / "evaluation.json")
    address = asked.config.dictionary.address
    tables.evaluation(result.to_json(), title=f"{address} of {asked.config.model}")
    print(f"saved in {directory}: dictionary/, evaluation.json, metrics.jsonl")
    return 0
