"""`jax-interp generate PROMPT`: continue a text with a model, and with saved edits if you give some."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from jax_interp.cli.arguments import parse
from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text
from jax_interp.recipes.generate import GenerateConfig, continue_text


@dataclass(frozen=True)
class Generate:
    """Continue a prompt. The text, prompt included, goes to stdout.

    Control characters, which a terminal would obey, are printed as escapes, such as \\x1b.
    """

    prompt: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[PROMPT]")] = "-"
    """The text to continue. "-" reads it from stdin."""
    config: Annotated[GenerateConfig, tyro.conf.arg(name="")] = field(default_factory=GenerateConfig)
    only_new: bool = False
    """Print the continuation without the prompt."""
    raw: bool = False
    """Print control characters as they are. Only for a file or a program that reads the output."""


def run(argv: Sequence[str]) -> int:
    """Run `jax-interp generate` with these arguments. Returns the exit code."""
    options = parse(Generate, argv, command="generate")
    prompt = _prompt(options.prompt)
    parts = continue_text(options.config, prompt)
    first = next(parts, "")  # an error is raised here, before anything is printed
    for part in itertools.chain(() if options.only_new else (prompt,), (first,), parts, ("\n",)):
        if options.raw:
            sys.stdout.write(part)
            sys.stdout.flush()
        else:
            print_text(part, end="")
    return 0


def _prompt(given: str) -> str:
    """The text to continue. Raises UserError if it is not UTF-8. Python turns such bytes into lone surrogates, or stdin
    raises an error."""
    try:
        prompt = sys.stdin.read() if given == "-" else given
        prompt.encode()
    except UnicodeError as error:
        source = "what stdin gives" if given == "-" else "the prompt"
        raise UserError(f"{source} is not UTF-8 text, convert it first: {error}") from None
    return prompt
