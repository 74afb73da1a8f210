"""`jax-interp status RUN ...`: where runs stand, from their files alone."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text, printable
from jax_interp.recipes.run_life import ago, length
from jax_interp.recipes.run_status import RunStatus, read_status, runs_at

SHOWN = ("loss", "fvu", "l0", "grad_norm", "dead", "ended", "eval.loss")
"""Metrics of the last record that are shown. If a run has none of them, its first ones are."""


@dataclass(frozen=True)
class Status:
    """Show where runs stand: step, speed, time left, last checkpoint, health, and how they ended.

    It reads files only, and works while a run goes on, on any machine that sees its directory. Several runs make a
    table. The exit code is 0 if all paths are runs, and 2 otherwise.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run directories, or folders with run directories in them."""
    json: bool = False
    """Print a list of JSON objects."""
    watch: Annotated[float | None, tyro.conf.arg(metavar="SECONDS")] = None
    """Show it again at this interval, until no run goes on."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp status` with these arguments. Returns the exit code."""
    options = parse(Status, argv, command="status")
    if not options.runs:
        raise UserError("give one or more run directories, such as runs/sae, or a folder of runs")
    if options.watch is not None and options.watch <= 0:
        raise UserError(f"--watch {options.watch:g}: give a number of seconds above 0")
    while True:
        found, refused = _read(options.runs)
        if options.watch is not None and sys.stdout.isatty():
            sys.stdout.write("\x1b[H\x1b[2J")
        _show(found, refused, as_json=options.json)
        if options.watch is None or not any(status.life.goes_on for status in found):
            return 2 if refused else 0
        time.sleep(options.watch)


def _read(paths: Sequence[Path]) -> tuple[list[RunStatus], list[str]]:
    """The runs that the paths name, and a line for each path that is none."""
    found, refused = [], []
    for path in paths:
        try:
            found += [read_status(one) for one in runs_at(path)]
        except UserError as error:
            refused.append(str(error))
    return found, refused


def _show(found: Sequence[RunStatus], refused: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_text(json.dumps([dataclasses.asdict(one) for one in found], indent=2, default=str))
    elif len(found) == 1:
        width = shutil.get_terminal_size((100, 24)).columns
        for line in lines(found[0], width):
            print_text(line)
    elif found:
        _print_many(found, shutil.get_terminal_size((100, 24)).columns)
    for line in refused:
        print_text(f"jax-interp: {line}", file=sys.stderr)


def lines(status: RunStatus, width: int) -> list[str]:
    """The status of one run as lines of at most `width` characters, where words allow it."""
    out = [printable(f"{status.name}: {status.kind}{f' ({status.about})' if status.about else ''}")]
    for name, text in _facts(status):
        wrapped = textwrap.wrap(
            printable(text), max(width - 14, 20), break_long_words=False, break_on_hyphens=False
        )  # fmt: skip
        out += [f"  {name if i == 0 else '':<11} {line}" for i, line in enumerate(wrapped)]
    return out


def _facts(status: RunStatus) -> Iterator[tuple[str, str]]:
    who = "" if status.life.process is None else f"; process {status.life.process} on {status.life.host}"
    yield (
        status.life.state,
        status.life.says + (who if status.life.goes_on and "process" not in status.life.says else ""),
    )
    if status.step is not None:
        of = "" if not status.steps else f" of {status.steps:,}, {_percent(status)}"
        yield "step", f"{status.step:,}{of}"
    if status.steps_per_second is not None and status.step is not None:
        yield "speed", _speed(status)
    if status.checkpoint is not None:
        age = "" if status.checkpoint_age is None else f", {ago(status.checkpoint_age)}"
        yield "checkpoint", f"step {status.checkpoint:,}{age}; {status.checkpoints} on the disk"
    elif status.step is not None:
        yield "checkpoint", "none"
    yield "size", _bytes(status.bytes)
    if status.record:
        yield "log", f"step {status.record['step']:,}: {_metrics(status)}"
    for one in status.rollbacks:
        yield "roll-back", _rollback(one)
    if status.evaluation:
        yield "evaluation", ", ".join(f"{name} {value:.4g}" for name, value in status.evaluation.items())
    for problem in status.problems:
        yield "damaged", problem


def _percent(status: RunStatus) -> str:
    if status.step is None or not status.steps:
        return ""
    return f"{100 * status.step / status.steps:.0f} %"


def _speed(status: RunStatus) -> str:
    rates = [f"{_rate(status.steps_per_second or 0.0)} steps/s"]
    rates += [f"{_rate(value)} {name}" for name, value in status.rates.items()]
    parts = [", ".join(rates)]
    if status.elapsed is not None:
        parts.append(
            f"{length(status.elapsed)} since it was started" if status.life.goes_on else length(status.elapsed)
        )
    if status.eta is not None:
        parts.append(f"about {length(status.eta)} left")
    return "; ".join(parts)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _metrics(status: RunStatus) -> str:
    numbers = {n: v for n, v in status.record.items() if isinstance(v, (int, float)) and n not in ("step", "tokens")}
    names = [name for name in SHOWN if name in numbers] or list(numbers)[:4]
    shown = []
    for name in names:
        extra = ""
        if name == "dead" and status.dead_share is not None:
            extra = f" ({100 * status.dead_share:.1f} % of the latents)"
        if name == "loss" and status.trend is not None:
            extra = f" ({100 * status.trend:+.1f} % over the last records)"
        shown.append(f"{name} {numbers[name]:.4g}{extra}")
    return ", ".join(shown)


def _rollback(one: Mapping[str, Any]) -> str:
    how = f"{one['skipped']} batches skipped" if one.get("skipped") else f"learning rate × {one.get('rate_factor')}"
    return f"step {one.get('step')}: {one.get('quantity')} was {one.get('value')}; back to step {one.get('to')}, {how}"


def _bytes(size: int) -> str:
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size} bytes"


def _print_many(found: Sequence[RunStatus], width: int) -> None:
    """A table, or two lines for each run if the table is wider than the terminal."""

    rows = [
        (
            one.name,
            one.life.state,
            "" if one.step is None else f"{one.step:,}" + (f" of {one.steps:,}" if one.steps else ""),
            "" if one.eta is None else length(one.eta),
            "" if one.checkpoint_age is None else f"{one.checkpoint:,}, {ago(one.checkpoint_age)}",
            f"{one.record['loss']:.4g}" if isinstance(one.record.get("loss"), (int, float)) else "",
            "; ".join(filter(None, (_events(one), *one.problems[:1]))),
        )
        for one in found
    ]
    names = ("run", "state", "step", "left", "checkpoint", "loss", "")
    needed = sum(max(map(len, column)) + 3 for column in zip(names, *rows, strict=True))
    if needed <= width:
        from jax_interp.views.tables import print_table

        print_table(["run", "state", *((name, "right") for name in names[2:6]), ""], rows)
        return
    for name, *cells in rows:
        print_text(printable(name))
        labelled = [f"{label} {cell}" if label not in ("state", "") else cell for label, cell in zip(names[1:], cells)]
        text = printable(", ".join(part for part, cell in zip(labelled, cells) if cell))
        print_text(textwrap.fill(text, max(width, 24), initial_indent="  ", subsequent_indent="  "))


def _events(one: RunStatus) -> str:
    if one.life.state not in ("running", "finished", "starting"):
        return one.life.says
    return f"{len(one.rollbacks)} roll-backs" if one.rollbacks else ""
