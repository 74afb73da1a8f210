"""`jax-interp decompose CONFIG`: decompose a model's matrices into components, measure them, and write a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.cli.run_options import RunOptions
from jax_interp.core.terminal import print_text
from jax_interp.recipes.decomposition import DecompositionRunConfig, decompose
from jax_interp.views.tables import passes


@dataclass(frozen=True, kw_only=True)
class Decompose(RunOptions):
    """Decompose a model's matrices into components, save them, measure them and write one HTML page.

    CONFIG is a name (tms_5_2_spd, ...), a .py file with a CONFIG, a config.json or a run directory. The options below
    override its fields, except the list of losses. The same command resumes a run that was stopped or killed, and the
    result is the same bit for bit.
    """

    config: Annotated[DecompositionRunConfig, tyro.conf.arg(name="")]


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp decompose` with these arguments. Returns the exit code."""
    found, rest = resolve(DecompositionRunConfig, argv, command="decompose", shown_in_help="tms_5_2_spd")
    options = parse(Decompose, rest, command="decompose", usage="CONFIG", default=Decompose(config=found.config))
    directory = options.directory(found)
    result = decompose(options.config, directory, **options.of_recipe())
    for line in summary(result):
        print_text(line)
    if "data" in result:
        print_text(passes(result["data"]))
    print_text(f"saved in {directory}: decomposition.safetensors, its evaluation, metrics.jsonl, report.html")
    return 0


def summary(result: dict[str, Any]) -> list[str]:
    """The main figures, one on each line: reconstruction, mechanistic faithfulness, linearity, known features."""
    lines = [f"faithfulness {result['faithfulness']:.3g} (relative {result['relative_faithfulness']:.3g})"]
    lines += [f"error under {kind} masks: {value:.4g}" for kind, value in result["error"].items()]
    lines += [f"error after {n} steps of the adversary: {value:.4g}" for n, value in result.get("pgd", {}).items()]
    composites = [row for row in result.get("composites", ()) if row["normalised"] is not None]
    lines += [f"composite inputs, {row['name']}: {_of_square(row)}" for row in composites]
    rows = {row["name"]: row for row in result["linearity"]}
    lines += [f"linearity, {n}: {_of_square(rows[n])}" for n in ("strict", "stochastic", "union of 2") if n in rows]
    figures = [n for n in ("anti / scrub", "L0", "sum of ranks") if n in rows]
    lines += [f"linearity, {n}: {_number(rows[n]['value'])}" for n in figures]
    for name, found in result.get("pattern_errors", {}).items():
        lines.append(f"one-hot importances of {name}, errors at .1: {found['errors']['0.1']} ({found['pattern']})")
    return lines + ([f"MMCS {result['mmcs']:.4f}, ML2R {result['ml2r']:.4f}"] if "mmcs" in result else [])


def _of_square(row: dict[str, Any]) -> str:
    excess = "" if row["excess"] is None else f", {_number(row['excess'])} over the oracle's"
    return f"{_number(row['normalised'])} of ‖f‖²{excess}"


def _number(value: float | None) -> str:
    """Four digits; a dash for None, which is a share of zero."""
    return "–" if value is None else f"{value:.4g}"
