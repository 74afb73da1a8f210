"""`jax-interp train-lm CONFIG`: a small language model, from text to exported weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.cli.run_options import RunOptions
from jax_interp.core.terminal import print_text
from jax_interp.recipes.train_lm import LanguageModelConfig, train_lm
from jax_interp.views import tables


@dataclass(frozen=True, kw_only=True)
class TrainLM(RunOptions):
    """Train a small language model from a config: text, tokenizer, training, evaluation, export.

    CONFIG is a name (stdlib_small, stdlib_tiny), a .py file with a CONFIG, a config.json or a run directory. The
    options below override its fields. The same command resumes a run that was stopped or killed, and the result is the
    same bit for bit.
    """

    config: Annotated[LanguageModelConfig, tyro.conf.arg(name="")]


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp train-lm` with these arguments. Returns the exit code."""
    found, rest = resolve(LanguageModelConfig, argv, command="train-lm", shown_in_help="stdlib_small")
    options = parse(TrainLM, rest, command="train-lm", usage="CONFIG", default=TrainLM(config=found.config))
    directory = options.directory(found)
    results = train_lm(options.config, directory, **options.of_recipe())
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
    began = results.get("parent")
    since = f", begun at step {began['step']:,} of {began['run']}" if began else ""
    tables.print_table(["", ("", "right"), ""], rows, title=f"after {results['steps']:,} steps{since}")
    print_text(tables.passes({"tokens": results["tokens_seen"], "text_tokens": results["corpus"]["train_tokens"]}))
    export = ", export/" if (directory / "export").is_dir() else ""
    print_text(f"saved in {directory}: results.json, metrics.jsonl{export}")
    return 0
