"""`jax-interp train-lm CONFIG`: a small language model, from text to exported weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.recipes.train_lm import LanguageModelConfig, train_lm
from jax_interp.views import tables


@dataclass(frozen=True)
class TrainLM:
    """Train a small language model from a config: text, tokenizer, training, evaluation, export.

    CONFIG is a name (stdlib_small, stdlib_tiny), a .py file with a CONFIG, a config.json or a run directory. The
    options below override its fields. The same command resumes a run that was stopped or killed, and the result is the
    same bit for bit.
    """

    config: Annotated[LanguageModelConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run directory. Default: runs/<config name>, or the run directory that was given as CONFIG."""
    quiet: bool = False
    """Do not show progress."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp train-lm` with these arguments. Returns the exit code."""
    found, rest = resolve(LanguageModelConfig, argv, command="train-lm", shown_in_help="stdlib_small")
    options = parse(TrainLM, rest, command="train-lm", usage="CONFIG", default=TrainLM(found.config))
    directory = options.run_dir or found.run_dir or Path("runs") / found.name
    results = train_lm(options.config, directory, quiet=options.quiet)
    validation, induction = results["validation"], results["induction"]
    rows = [
        ("validation loss", tables.format_number(validation["loss"]), "nats per token"),
        ("perplexity", tables.format_number(validation["perplexity"]), ""),
        ("bits per byte", tables.format_number(validation.get("bits_per_byte")), "of the held-out text"),
    ]
    if "baseline" in results:
        rows.append(
            ("n-gram baseline", tables.format_number(results["baseline"]["loss"]), results["baseline"]["model"])
        )
    rows += [
        ("random tokens, first half", tables.format_number(induction["first_half"]), "nats per token"),
        (
            "the same, repeated",
            tables.format_number(induction["second_half"]),
            "induction: much lower than the first half",
        ),
    ]
    tables.print_table(["", ("", "right"), ""], rows, title=f"after {results['steps']:,} steps")
    export = ", export/" if (directory / "export").is_dir() else ""
    print(f"saved in {directory}: results.json, metrics.jsonl{export}")
    return 0
