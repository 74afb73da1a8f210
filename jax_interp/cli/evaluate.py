"""`jax-interp evaluate RUN_OR_DICTIONARY`: measure a trained dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse


@dataclass(frozen=True)
class Evaluate:
    """Measure a dictionary on held-out text: sparsity, reconstruction, and the rise of the model's loss.

    First the command checks that an identity in place of the dictionary gives exactly the model's loss. The figures are
    printed and written as JSON.
    """

    dictionary: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_OR_DICTIONARY")]
    """A run directory of train-dictionary, or a directory with dictionary.json and dictionary.safetensors."""
    sequences: int | None = None
    """The number of held-out sequences. Default: the number in the run's config."""
    model: str | None = None
    """A model to use instead of the model that the dictionary was trained on."""
    text: str | None = None
    """Another text: "stdlib", a UTF-8 file, or a directory of such files. Its held-out part is used."""
    json: Path | None = None
    """The file for the figures. Default: evaluation.json in the directory; with another model or text, no file."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp evaluate` with these arguments. Returns the exit code."""
    options = parse(Evaluate, argv, command="evaluate")
    from jax_interp.recipes.evaluate_dictionary import evaluate_saved
    from jax_interp.views import tables

    changes = {"model": options.model, "text": options.text, "sequences": options.sequences}
    found = evaluate_saved(options.dictionary, **changes, write_to=options.json)
    named = tables.reads_and_writes(found.saved.address, found.saved.writes)
    tables.print_evaluation(found.figures, title=f"{named} of {found.config.model}")
    if found.written_to is not None:
        print(f"written to {found.written_to}")
    return 0
