"""`jax-interp patch`: patching grids of a pair of prompts, or of a table of pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.cli.mesh_option import MeshOption
from jax_interp.core.terminal import print_text, printable


@dataclass(frozen=True)
class Patch(MeshOption):
    """Put values of one prompt's run into the run of another, for every layer, position and head.

    The metric is the logit of --answer minus the logit of --other after the last token. The directory gets a page with
    the numbers under the pointer, a figure for each grid, and the arrays.
    """

    out: Path
    """An empty or missing directory."""
    clean: str | None = None
    """The clean prompt."""
    corrupted: str | None = None
    """The corrupted prompt, with as many tokens."""
    answer: str | None = None
    """The right next token of the clean prompt."""
    other: str | None = None
    """The right next token of the corrupted prompt."""
    pairs: Path | None = None
    """A table of pairs in place of one pair: a .jsonl or .csv file with the columns clean, corrupted, answer, other."""
    model: str = "stdlib-small"
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    grids: Annotated[tuple[str, ...], tyro.conf.arg(metavar="GRID ...")] = (
        "resid_pre", "attn_out", "mlp_out", "head_out",
    )  # fmt: skip
    """What is patched. An unknown name lists all."""
    direction: Literal["denoise", "noise"] = "denoise"
    """denoise: clean values go into the corrupted run. noise: the other way."""
    bos: bool = True
    """Put the document-start token first, where the tokenizer has one."""
    budget_mb: int = 1024
    """The memory of the compiled program of one piece of a sweep, in MB, without the model."""
    quiet: bool = False
    """Do not show progress."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp patch` with these arguments. Returns the exit code."""
    options = parse(Patch, argv, command="patch")
    from jax_interp.recipes.patch import PAGE, PatchConfig, patch_prompts

    names = [field.name for field in dataclasses.fields(PatchConfig)]
    config = PatchConfig(**{name: getattr(options, name) for name in names})
    found = patch_prompts(config, options.out, quiet=options.quiet, mesh=options.devices())
    for name, effects in found.effects.items():
        shown = []
        for place, value in effects.normalised().largest(3):
            shown.append(f"{value:.2f} at {', '.join(f'{axis} {printable(str(at))}' for axis, at in place.items())}")
        print_text(f"{name}: {'; '.join(shown)}")
    print_text(f"written to {found.directory}; open {found.directory / PAGE}")
    return 0
