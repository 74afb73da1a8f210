"""`jax-interp evaluate-probes RUN --tables TABLE ...`: the probes of a finished run on other labelled sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.terminal import print_text
from jax_interp.probes import Columns


@dataclass(frozen=True)
class EvaluateProbes(MeshOption):
    """Judge the probes that train-probes chose on sets that they were not fitted on, and write a page."""

    run: tyro.conf.Positional[Path]
    """The run directory of train-probes."""
    tables: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="TABLE ...")]
    """Labelled tables (CSV, JSON lines, Parquet) with the classes of the probes."""
    control: Path | None = None
    """A table of benign texts, from which thresholds at a rate of false alarms are taken."""
    columns: Columns = field(default_factory=Columns)
    """What the columns of the tables mean."""
    context: int | None = 256
    """Texts are cut after this many tokens."""
    examples: int = 1000
    """The most examples of each table: a random part."""
    fprs: Annotated[tuple[float, ...], tyro.conf.arg(metavar="RATE ...")] = (0.01,)
    """The rates of false alarms on the control set."""
    shown: int = 4
    """The number of texts of each set whose tokens are coloured."""
    out: Path | None = None
    """Where the results go. Default: the folder evaluation in the run directory."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp evaluate-probes` with these arguments. Returns the exit code."""
    options = parse(EvaluateProbes, argv, command="evaluate-probes")
    from jax_interp.recipes.probes.evaluate_probes import PAGE, evaluate_run
    from jax_interp.recipes.probes.labelled_set import LabelledSet

    as_set = lambda table: LabelledSet(
        table=table, columns=options.columns, context=options.context, examples=options.examples
    )
    directory = options.out or options.run / "evaluation"
    found = evaluate_run(
        options.run, [as_set(table) for table in options.tables], directory,
        control=None if options.control is None else as_set(options.control),
        fprs=options.fprs, shown=options.shown, progress=print_text, mesh=options.devices(),
    )  # fmt: skip
    for one in found:
        print_text(str(one))
    print_text(f"written to {directory}; open {directory / PAGE}")
    return 0
