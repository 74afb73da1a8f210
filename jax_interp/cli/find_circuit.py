"""`jax-interp find-circuit CONFIG`: score the edges of a model for one behaviour, and judge the circuits."""

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
from jax_interp.recipes.find_circuit import FindCircuitConfig, find_circuit


@dataclass(frozen=True, kw_only=True)
class FindCircuit(MeshOption):
    """Find the circuit of a behaviour, judge it on held-out prompts beside random circuits, and write a page.

    CONFIG is a name (stdlib_small_circuit), a .py file with a CONFIG, a config.json or a run directory. The options
    below override its fields. The circuit is written in the format of the benchmark MIB.
    """

    config: Annotated[FindCircuitConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run directory. Default: runs/<config name>, or the run directory that was given as CONFIG."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp find-circuit` with these arguments. Returns the exit code."""
    found, rest = resolve(FindCircuitConfig, argv, command="find-circuit", shown_in_help="stdlib_small_circuit")
    default = FindCircuit(config=found.config)
    options = parse(FindCircuit, rest, command="find-circuit", usage="CONFIG", default=default)
    directory = options.run_dir or found.run_dir or Path("runs") / found.name
    for line in find_circuit(options.config, directory, mesh=options.devices()).lines:
        print_text(line)
    print_text(f"saved in {directory}: circuit.json, report.json, circuit.html, summary.txt")
    return 0
