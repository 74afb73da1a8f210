"""The config that a command runs, from its command line.

    jax-interp train-lm stdlib_tiny                    configs/stdlib_tiny.py
    jax-interp train-lm my/run.py                      any Python file that defines CONFIG
    jax-interp train-lm --config runs/x                runs/x/config.json

    jax-interp train-lm --from runs/x --run-dir y      runs/x/config.json, for a new run

If the config is a run directory, the command resumes that run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from jax_interp.core.errors import UserError
from jax_interp.recipes.configs import FoundConfig, find_config, known_names
from jax_interp.training.parent import run_and_step

Config = TypeVar("Config")


def take_source(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the config's name from the other arguments.

    Args:
      argv: the arguments after the command.

    Returns:
      `(source, rest)`. The source is the first argument if it is not an option, or the argument of `--config`; None if
      neither is given.

    Raises:
      UserError: two configs are given, or nothing follows `--config`.
    """
    rest, source = list(argv), None
    if rest and not rest[0].startswith("-"):
        source = rest.pop(0)
    for i, argument in enumerate(rest):
        if argument == "--config" or argument.startswith("--config="):
            if source is not None:
                raise UserError(f"two configs were given, {source!r} and {argument!r}: give one")
            if argument == "--config" and i + 1 == len(rest):
                raise UserError("--config needs a name, a .py file, a config.json or a run directory")
            source = rest[i + 1] if argument == "--config" else argument.partition("=")[2]
            del rest[i : i + (2 if argument == "--config" else 1)]
            break
    return source, rest


def _parent(arguments: Sequence[str]) -> str | None:
    """The directory that `--from RUN[@STEP]` names."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument == "--from" or argument.startswith("--from="):
            value = following if argument == "--from" else argument.partition("=")[2]
            return run_and_step(value)[0]
    return None


def resolve(
    kind: type[Config], argv: Sequence[str], *, command: str, shown_in_help: str
) -> tuple[FoundConfig[Config], list[str]]:
    """Find the config that the command line names.

    Args:
      kind: the class of the command's configs.
      argv: the arguments after the command.
      command: the command's name, for messages.
      shown_in_help: the config whose values `--help` shows if no config is named.

    Returns:
      The config, and the other arguments.

    Raises:
      UserError: no config is named, or it cannot be found or read.
    """
    source, rest = take_source(argv)
    if source is None and (parent := _parent(rest)) is not None:
        found = find_config(kind, parent)
        return FoundConfig(found.config, found.name), rest  # a new run: not in the directory of its parent
    if source is None and any(argument in ("-h", "--help") for argument in rest):
        source = shown_in_help
    if source is None:
        names = ", ".join(known_names(kind)) or "none by name"
        raise UserError(f"{command} needs a config: {names}; or a .py file, a config.json or a run directory")
    return find_config(kind, source), rest
