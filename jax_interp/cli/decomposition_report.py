"""`jax-interp decomposition-report RUN_DIR`: the page of a finished decomposition again, with more on it or less."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.decompose import method_of, write_page
from jax_interp.core import config_json as configs
from jax_interp.core.errors import UserError
from jax_interp.recipes.decomposition import DecompositionRunConfig, inputs_for
from jax_interp.recipes.decomposition_page import Shown
from jax_interp.recipes.run_inputs import same_inputs

NEEDED = ("decomposition.safetensors", "evaluation.json")  # what `decompose` writes at its end


@dataclass(frozen=True)
class Report:
    """Write the page of a finished run of decompose again: one HTML file, report.html in its directory.

    Of every matrix it shows the components with the largest mean importance: their vectors, and of a language model
    the tokens on which they are important, those predicted there, and the pieces of held-out text in which they are
    most important. Nothing is trained or measured again.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """A run directory of decompose."""
    shown: Annotated[Shown, tyro.conf.arg(name="")] = field(default_factory=Shown)


def run(argv: Sequence[str]) -> int:
    asked = parse(Report, argv, command="decomposition-report")
    config, result = finished(asked.run_dir)
    inputs = inputs_for(config)
    same_inputs(asked.run_dir, inputs.fingerprint, begins=False)
    method = method_of(config)
    trained, _ = method.load(asked.run_dir / NEEDED[0], inputs.model)
    path = write_page(method, asked.run_dir, result, trained, inputs.for_page(asked.shown.sequences), asked.shown)
    print(f"written to {path}")
    return 0


def finished(directory: Path) -> tuple[DecompositionRunConfig, dict[str, Any]]:
    """The config and the evaluation of a finished run. Raises UserError."""
    if not directory.is_dir():
        raise UserError(f"no directory {directory}: give a run directory of decompose")
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} holds no run: there is no config.json in it")
    config = configs.load(DecompositionRunConfig, directory)
    missing = [name for name in NEEDED if not (directory / name).is_file()]
    if missing:
        raise UserError(
            f"{directory} is a run that has not finished: it has no {' and no '.join(missing)}; "
            f"`jax-interp decompose {directory}` goes on with it"
        )
    try:
        result = json.loads((directory / NEEDED[1]).read_text())
    except ValueError as error:
        raise UserError(f"{directory / NEEDED[1]} is not JSON: {error}") from error
    wanted = ("target", "source", *method_of(config).figures)
    lacks = [name for name in wanted if not isinstance(result, dict) or name not in result]
    if lacks:
        raise UserError(
            f"{directory / NEEDED[1]} has no {', '.join(lacks)}: `jax-interp decompose {directory}` measures again"
        )
    return config, result
