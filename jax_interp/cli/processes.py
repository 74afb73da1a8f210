"""The options that start a command on several processes. Every command accepts them.

    jax-interp train-dictionary CONFIG --mesh data=2 --coordinator HOST:PORT --processes 2 --process 0
    srun jax-interp train-dictionary CONFIG --mesh data=-1 --processes auto

Each process is started with the same command. `auto` asks the environment of the cluster (SLURM, Open MPI, Cloud TPU,
Kubernetes indexed jobs) for the three values.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jax_interp.core.errors import UserError
from jax_interp.core.joined import Ended, Member, joined
from jax_interp.core.joined.join import address, describe_error, is_of_runtime, join_processes, leave
from jax_interp.core.terminal import print_text

Explained = tuple[str, int]  # the message of an error, and the exit code

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
    address(given["--coordinator"])
    if count < 1 or index >= count:
        raise UserError(f"--processes {count} --process {index}: the processes are numbered from 0 to {count - 1}")
    return rest, Processes(given["--coordinator"], count, index)


_EXAMPLE = "--coordinator 10.0.0.1:1234 --processes 2 --process 0"


def _number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{name} {text!r} is not a number of 0 or more; an example is {_EXAMPLE}")
    return int(text)


def run_joined(
    processes: Processes,
    arguments: Sequence[str],
    command: Callable[[], int],
    explain: Callable[[Exception], Explained],
) -> int:
    """Join the other processes, run the command, and leave. Only the first process prints to stdout.

    If the command fails in one process, this function ends the process: waiting for the others, which may wait for
    this one, would take for ever.

    Args:
      processes: where the others are.
      arguments: the arguments of the command. They must be the same in every process.
      command: runs the command and returns its exit code.
      explain: the message and the exit code of an error. It raises the error again if it is a defect of the package.

    Returns:
      The exit code of the command, which is 0.

    Raises:
      UserError: the processes cannot be joined.
    """
    with join_processes(processes.coordinator, processes.count, processes.index, same=_described(arguments)):
        member = joined()
        if member is None:  # a cluster of one process
            return command()
        _own_stdout(first=member.index == 0)
        code = _code_of(member, command, explain)
        if code:
            leave(code)
    return 0


def _code_of(member: Member, command: Callable[[], int], explain: Callable[[Exception], Explained]) -> int:
    """Run the command. If it fails, one process prints the error, and the others say which one it was."""
    try:
        code = command()
        if code:
            member.end(f"it ended with exit code {code}", code, follows=False)
        return code
    except Ended as ended:
        message, code = str(ended), ended.code
    except Exception as error:
        try:
            return _failed(member, error, explain)
        except Ended as ended:
            message, code = str(ended), ended.code
    print_text(f"jax-interp: {message}", file=sys.stderr)
    return code


def _failed(member: Member, error: Exception, explain: Callable[[Exception], Explained]) -> int:
    try:
        message, code = explain(error)
    except Exception:
        if member.end(describe_error(error), 1, follows=is_of_runtime(error)):
            traceback.print_exception(error)
        return 1
    if member.end(message, code, follows=False):
        print_text(f"jax-interp: {message}", file=sys.stderr)
    return code


def _own_stdout(first: bool) -> None:
    """Let only Python write to stdout, and only in the first process. Gloo, a library of JAX, prints there too."""
    if first:
        sys.stdout = open(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)  # noqa: SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _described(arguments: Sequence[str]) -> dict[str, str]:
    """The arguments of a command and the content of the files among them, for the comparison of the processes."""
    found = {f"argument {number}": repr(word) for number, word in enumerate(arguments, start=1)}
    for word in arguments:
        path = Path(word.partition("=")[2] if word.startswith("--") and "=" in word else word)
        with contextlib.suppress(OSError, ValueError):
            if path.is_file():
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
                found[f"the file {path}"] = f"{path.stat().st_size:,} bytes with digest {digest}"
    return found
