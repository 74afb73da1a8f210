"""`jax-interp steer CONFIG`: find a steering vector, measure it at several strengths, and write a page."""

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
from jax_interp.recipes.steering.steer import PAGE, SteerConfig, steer


@dataclass(frozen=True, kw_only=True)
class Steer(MeshOption):
    """Find steering vectors on questions with two answers, choose one, measure it, and write a page.

    CONFIG is a name (stdlib_small_steer), a .py file with a CONFIG, a config.json or a run directory. The options below
    override its fields: --questions.table lm_survival-instinct.jsonl asks questions of your own, and
    --vector my.safetensors (or .gguf) measures a vector that you have.
    """

    config: Annotated[SteerConfig, tyro.conf.arg(name="")]
    run_dir: Path | None = None
    """The run directory. Default: runs/<config name>, or the run directory that was given as CONFIG."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp steer` with these arguments. Returns the exit code."""
    found, rest = resolve(SteerConfig, argv, command="steer", shown_in_help="stdlib_small_steer")
    options = parse(Steer, rest, command="steer", usage="CONFIG", default=Steer(config=found.config))
    directory = options.run_dir or found.run_dir or Path("runs") / found.name
    for line in steer(options.config, directory, print_text, mesh=options.devices()).lines():
        print_text(line)
    print_text(f"saved in {directory}; open {directory / PAGE}")
    return 0
