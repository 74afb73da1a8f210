"""The options that start a command on several processes. Every command accepts them.

    jax-interp train-dictionary CONFIG --mesh data=2 --coordinator HOST:PORT --processes 2 --process 0
    srun jax-interp train-dictionary CONFIG --mesh data=-1 --processes auto

Each process is started with the same command. `auto` asks the environment of the cluster (SLURM, Open MPI, Cloud TPU,
Kubernetes indexed jobs) for the three values.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jax_interp.core.errors import UserError
from jax_interp.core.terminal import print_text

OPTIONS = ("--coordinator", "--processes", "--process")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as the command line gives them."""

    coordinator: str | None = None
    """HOST:PORT of the first process."""
    count: int | None = None
    """How many processes there are. None: the environment of the cluster says it."""
    index: int | None = None
    """The number of this process, from 0."""


def take_processes(arguments: Sequence[str]) -> tuple[list[str], Processes | None]:
    """Split the options of processes from the other arguments of a command.

    Returns:
      (the other arguments, the processes). None: the command runs in one process.

    Raises:
      UserError: an option has no value, is not a number, or is given without the others.
    """
    rest: list[str] = []
    given: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in OPTIONS:
            rest.append(word)
            continue
        if name in given:
            raise UserError(f"{name} is given twice")
        found = value if equals else next(words, None)
        if not found or found.startswith("--"):
            raise UserError(f"{name} needs a value; an example is {_EXAMPLE}")
        given[name] = found
    if not given:
        return rest, None
    if given.get("--processes") == "auto":
        if len(given) > 1:
            raise UserError(
                "--processes auto asks the cluster for the coordinator and the number of this process: "
                "leave --coordinator and --process out"
            )
        return rest, Processes()
    missing = [name for name in OPTIONS if name not in given]
    if missing:
        raise UserError(f"{', '.join(missing)} is missing; give all three, such as {_EXAMPLE}, or --processes auto")
    count, index = (_number(name, given[name]) for name in ("--processes", "--process"))
    host, colon, port = given["--coordinator"].rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator {given['--coordinator']!r} is not HOST:PORT, such as 10.0.0.1:1234")
    if count < 1 or index >= count:
        raise UserError(f"--processes {count} --process {index}: the processes are numbered from 0 to {count - 1}")
    return rest, Processes(given["--coordinator"], count, index)


_EXAMPLE = "--coordinator 10.0.0.1:1234 --processes 2 --process 0"


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name} {text!r} is not a number of 0 or more; an example is {_EXAMPLE}")
    return int(text)


def run_joined(processes: Processes, command: Callable[[], int]) -> int:
    """Join the other processes, run the command, and leave. Only the first process prints to stdout.

    Returns:
      The exit code of the command.

    Raises:
      UserError: the processes cannot be joined.
    """
    import jax

    try:
        jax.distributed.initialize(
            processes.coordinator, processes.count, processes.index, heartbeat_timeout_seconds=30,
            shutdown_timeout_seconds=30, initialization_timeout=120,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise UserError(f"cannot join the processes of this run: {error}") from error
    with contextlib.ExitStack() as stack:
        if jax.process_index():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        code = command()
    if code:  # a process that stops early cannot wait for the others, which may be waiting for it
        print_text(f"jax-interp: process {jax.process_index()} of {jax.process_count()} ends", file=sys.stderr)
        sys.stderr.flush()
        os._exit(code)
    jax.distributed.shutdown()
    return code
