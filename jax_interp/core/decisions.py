"""Decisions of process 0, values of all processes, and whether they share a disk.

Process 0 looks at the files of a run, because the others may have another disk. Every process of the run calls these
functions in the same order. In a program of one process they return at once.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.joined import joined
from jax_interp.core.processes import from_first_process, is_first_process, process_count

_LOOK_SECONDS = 3.0  # a network file system may show a new file to other machines a moment later


def exchange(what: str, value: str) -> list[str]:
    """The values of all processes, in their order.

    Args:
      what: a name for the value, which is the same in every process.
      value: any text.
    """
    if process_count() == 1:
        return [value]
    member = joined()
    if member is not None:
        return member.exchange(what, value)
    from jax.experimental import multihost_utils

    text = np.frombuffer(value.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths.tolist())]


def same_everywhere(what: str, value: str) -> None:
    """Compare a value of all processes.

    Raises:
      UserError: a process has another value than process 0.
    """
    values = exchange(what, value)
    different = [str(index) for index, other in enumerate(values) if other != values[0]]
    if different:
        raise UserError(
            f"{what} of process {', '.join(different)} differs from that of process 0: start the same command with "
            "the same files and packages in every process"
        )


def of_first(make: Callable[[], Any], *errors: type[UserError]) -> Any:
    """`from_first_process`, with errors that keep their type in the other processes.

    Args:
      make: returns JSON values. Only process 0 calls it.
      errors: the kinds of errors. Any other UserError is raised in the other processes as a plain UserError.
    """

    def made() -> dict[str, Any]:
        try:
            return {"value": make()}
        except errors as error:
            return {"error": str(error), "kind": type(error).__name__}

    found = from_first_process(made)
    if "error" in found:
        raise next(kind for kind in errors if kind.__name__ == found["kind"])(found["error"])
    return found["value"]


def on_one_disk(directory: Path) -> bool:
    """Whether every process sees the files that process 0 writes into a directory. The directory must exist there."""
    if process_count() == 1:
        return True

    def mark() -> str:
        name = f".shared-{secrets.token_hex(8)}.tmp"
        (directory / name).touch()
        return name

    marker = directory / from_first_process(mark)
    until = time.monotonic() + _LOOK_SECONDS
    while not (seen := marker.exists()) and time.monotonic() < until:
        time.sleep(0.05)
    every = exchange("whether the marker file is there", str(seen))
    if is_first_process():
        with contextlib.suppress(OSError):
            marker.unlink()
    return all(answer == "True" for answer in every)
