"""`jax-interp train-probes CONFIG`: fit probes on a labelled set, judge them, and write a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import resolve
from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.terminal import print_text
from jax_interp.recipes.probes.train_probes import PAGE, TrainProbesConfig, train_probes


@dataclass(frozen=True, kw_only=True)
class TrainProbes(MeshOption):
    """Fit probes at every site, judge them beside their baselines and controls, and write a page.

    CONFIG is a name (stdlib_small_probes), a .py file with a CONFIG, a config.json or a run directory. The options
    below override its fields: --data.table my.csv --data.columns.label sentiment reads a table of your own.
    """

    config: Annotated[TrainProbesConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run directory. Default: runs/<config name>, or the run directory that was given as CONFIG."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp train-probes` with these arguments. Returns the exit code."""
    found, rest = resolve(TrainProbesConfig, argv, command="train-probes", shown_in_help="stdlib_small_probes")
    options = parse(
        TrainProbes, rest, command="train-probes", usage="CONFIG", default=TrainProbes(config=found.config)
    )  # fmt: skip
    directory = options.run_dir or found.run_dir or Path("runs") / found.name
    for line in train_probes(options.config, directory, print_text, mesh=options.devices()).lines():
        print_text(line)
    print_text(f"saved in {directory}; open {directory / PAGE}")
    return 0
