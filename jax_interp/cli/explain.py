"""`jax-interp explain MODEL PROMPT`: which components cause one surprising prediction."""

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
class Explain(MeshOption):
    """Find a small set of heads and MLPs whose values, taken from other prompts of the same kind, undo a prediction.

    The other prompts are lines of a file, or places in a text that end with the same tokens. Half of them are used to
    search, half to measure what was found, beside random sets of equal size.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A model of the package, a Hugging Face directory, or a name on the Hugging Face hub."""
    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PROMPT")]
    """The text. "\\n" is a new line."""
    position: int | None = None
    """The position of the token after which the prediction is made; BOS counts, negative: from the end. Default: the
    one whose next token surprises the model most."""
    token: str | None = None
    """The predicted token. Default: the most likely one."""
    others: Path | None = None
    """A UTF-8 file with one other prompt in each line, up to the prediction. Default: places in --text."""
    text: str = "stdlib"
    """The text whose held-out part is searched for other prompts: "stdlib", a UTF-8 file, or a directory."""
    count: int = 32
    """How many other prompts are used, at most."""
    rows: int = 64
    """How many prompts run at once."""
    seed: int = 0
    """The seed of the choice of other prompts and of random sets."""
    out: Path | None = None
    """A directory for the page and the figures."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp explain` with these arguments. Returns the exit code."""
    options = parse(Explain, argv, command="explain")
    from jax_interp.models import load
    from jax_interp.recipes.explain import PAGE, ExplainConfig, explain, summary

    config = ExplainConfig(
        options.prompt.replace("\\n", "\n"), options.model, options.position, options.token, options.others,
        options.text, options.count, options.rows, options.seed,
    )  # fmt: skip
    found = explain(config, options.out, mesh=options.devices())
    _, tokenizer = load(options.model)
    assert tokenizer is not None  # `explain` refuses a model without
    for line in summary(found, tokenizer):
        print_text(line)
    print_text("largest effects of one component alone:")
    for i, mean, spread in found.cause.ranked()[:8]:
        print_text(f"  {found.cause.components.names[i]}: {mean:+.3f} ± {spread:.2f}")
    if options.out is not None:
        print_text(f"written to {options.out}; open {options.out / PAGE}")
    return 0
