"""`jax-interp demo`: the whole of the package's first job, on a real model, with a report at the end.

Killed at any moment and called again with the same command it goes on: the training from its last checkpoint, to the
same bits, the rest from the start (it takes seconds).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import take_source
from jax_interp.recipes.configs import find_config
from jax_interp.recipes.demo.config import DemoConfig
from jax_interp.recipes.demo.run import demonstrate


@dataclass(frozen=True)
class Demo:
    """Open a trained language model up, from its weights to a report, in a few minutes on two CPU cores.

    Loads the model, lets it write, trains a sparse dictionary on its activations, evaluates it, finds the features
    that fire on a token, ablates and clamps one while the model writes, patches a pair of prompts over layers and
    positions, and writes one HTML page about all of it. Stopped or killed, the same command goes on.

    CONFIG is a name (demo, the default), a .py file with a CONFIG, or a config.json.
    """

    config: Annotated[DemoConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """Where everything is kept: runs/<config name>. The report is report.html in it."""
    quiet: bool = False
    """No progress."""


def run(argv: Sequence[str]) -> int:
    source, rest = take_source(argv)
    found = find_config(DemoConfig, source or "demo")
    asked = parse(Demo, rest, command="demo", usage="[CONFIG]", default=Demo(found.config))
    directory = asked.run_dir or Path("runs") / found.name
    report = demonstrate(asked.config, directory, quiet=asked.quiet, command=f"jax-interp {' '.join(['demo', *argv])}")
    print(f"\nThe report: {report.absolute()}")
    return 0
