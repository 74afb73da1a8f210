"""`jax-interp decomposition-report RUN_DIR`: write the page of a finished decomposition again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.terminal import print_text
from jax_interp.recipes.decomposition import PageOptions, rewrite_page


@dataclass(frozen=True)
class Report:
    """Write the page of a finished run of decompose again: the file report.html in its directory.

    For every matrix the page shows the components with the largest mean importance, and their vectors. For a language
    model it also shows the tokens on which they are important, the tokens that are predicted there, and the pieces of
    held-out text in which they are most important. Nothing is trained or measured again.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """A run directory of decompose."""
    page: Annotated[PageOptions, tyro.conf.arg(name="")] = field(default_factory=PageOptions)


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp decomposition-report` with these arguments. Returns the exit code."""
    options = parse(Report, argv, command="decomposition-report")
    print_text(f"written to {rewrite_page(options.run_dir, options.page)}")
    return 0
