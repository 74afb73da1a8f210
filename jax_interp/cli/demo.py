"""`jax-interp demo`: a tour of the package on a small real model, with a report at the end.

The same command resumes a demo that was killed: training resumes from its last checkpoint, with the same bits as a
result, and the other stages start again, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.config_source import take_source
from jax_interp.core.terminal import print_text
from jax_interp.recipes.configs import find_config
from jax_interp.recipes.demo.config import DemoConfig


@dataclass(frozen=True)
class Demo:
    """Look inside a trained language model and write a report, in a few minutes on two CPU cores.

    The demo loads the model, lets it write, trains a sparse dictionary on its activations and evaluates it. It finds
    the features that fire on a token, ablates and clamps one of them while the model writes, patches a pair of prompts
    over layers and positions, and writes one HTML page with all results. The same command resumes a demo that was
    stopped or killed.

    CONFIG is a name (demo, the default), a .py file with a CONFIG, or a config.json.
    """

    config: Annotated[DemoConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The directory for everything, with the report in report.html. Default: runs/<config name>."""
    quiet: bool = False
    """Do not show progress."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp demo` with these arguments. Returns the exit code."""
    source, rest = take_source(argv)
    found = find_config(DemoConfig, source or "demo")
    options = parse(Demo, rest, command="demo", usage="[CONFIG]", default=Demo(found.config))
    from jax_interp.recipes.demo.run import demonstrate

    directory, command = options.run_dir or Path("runs") / found.name, " ".join(("jax-interp demo", *argv))
    report = demonstrate(options.config, directory, quiet=options.quiet, command=command)
    print_text(f"\nThe report: {report.absolute()}")
    return 0
