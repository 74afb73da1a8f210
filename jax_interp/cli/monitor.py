"""`jax-interp monitor CONFIG`: compare monitors of conversations at equal rates of false alarms."""

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
from jax_interp.recipes.probes.monitor import PAGE, MonitorConfig, monitor


@dataclass(frozen=True, kw_only=True)
class MonitorCommand(MeshOption):
    """Compare a probe with monitors that see only text: recall, cost, cascades, combinations. Writes a page.

    CONFIG is a name (stdlib_small_monitor), a .py file with a CONFIG, a config.json or a run directory. The options
    below override its fields.
    """

    config: Annotated[MonitorConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run directory. Default: runs/<config name>, or the run directory that was given as CONFIG."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp monitor` with these arguments. Returns the exit code."""
    found, rest = resolve(MonitorConfig, argv, command="monitor", shown_in_help="stdlib_small_monitor")
    default = MonitorCommand(config=found.config)
    options = parse(MonitorCommand, rest, command="monitor", usage="CONFIG", default=default)
    directory = options.run_dir or found.run_dir or Path("runs") / found.name
    for line in monitor(options.config, directory, print_text, mesh=options.devices()).lines():
        print_text(line)
    print_text(f"saved in {directory}; open {directory / PAGE}")
    return 0
