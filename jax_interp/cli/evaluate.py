"""`jax-interp evaluate SOURCE [ID]`: measure a dictionary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.terminal import print_text


@dataclass(frozen=True)
class Evaluate(MeshOption):
    """Measure a dictionary on held-out text: sparsity, reconstruction, and the rise of the model's loss.

    First the command checks that an identity in place of the dictionary gives exactly the model's loss. The figures are
    printed and written as JSON, and the page of the dictionary's features is written beside them.
    """

    dictionary: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    """A run directory of train-dictionary, a folder or file of a dictionary in any format, the name of a published
    release, or hf:owner/repository/path."""
    id: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[ID]")] = None
    """The id of a dictionary in the release."""
    format: str | None = None
    """The format of the files. Default: it is detected."""
    address: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADDRESS ...")] = ()
    """The address that it reads, such as blocks.5.resid_post. Needed if the files do not say it."""
    writes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ADDRESS ...")] = ()
    """The address that it writes, if it is another one and the files do not say it."""
    sequences: int | None = None
    """The number of held-out sequences. Default: the number in the run's config."""
    context: int | None = None
    """The number of tokens in a sequence. Default: the number in the run's config, or 256."""
    model: str | None = None
    """A model to use instead of the model that the dictionary was trained on. Needed if the files do not say it."""
    text: str | None = None
    """Another text: "stdlib", a UTF-8 file, or a directory of such files. Its held-out part is used."""
    json: Path | None = None
    """A new file for the figures. Default for a run or a dictionary of this package: the next free one of
    evaluation.json, evaluation-2.json, ... in its directory. With another model or text, no file."""
    features: int | None = None
    """The number of features on the page of features. Default: the number in the run's config. 0: no page."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp evaluate` with these arguments. Returns the exit code."""
    options = parse(Evaluate, argv, command="evaluate")
    from jax_interp.recipes.evaluate_dictionary import Asked, evaluate_saved
    from jax_interp.views import tables

    asked = Asked(options.model, options.text, options.sequences, options.context, options.address, options.writes)
    where = {
        "format": options.format,
        "write_to": options.json,
        "features": options.features,
        "mesh": options.devices(),
    }
    found = evaluate_saved(options.dictionary, options.id, asked=asked, **where)
    named = tables.reads_and_writes(found.saved.reads(), found.saved.writes)
    tables.print_evaluation(found.figures, title=f"{named} of {found.config.model}")
    if found.written_to is not None:
        print_text(f"written to {found.written_to}")
    if found.page is not None:
        print_text(f"features: {found.page}")
    return 0
