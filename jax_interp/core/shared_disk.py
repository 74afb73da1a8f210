"""Whether the processes of a run see the same files."""

from __future__ import annotations

import contextlib
import secrets
import time
from pathlib import Path

import numpy as np

from jax_interp.core.atomic_write import WriteError, make_directory
from jax_interp.core.errors import UserError
from jax_interp.core.local_paths import check_local
from jax_interp.core.processes import barrier, from_every, is_first_process

SECONDS = 10.0
"""How long a process waits for a file of the first one. Network disks show a new file after some seconds."""


def check_shared(directory: Path | str, what: str) -> None:
    """Raise UserError, in every process, if a process does not see what the first one writes into a directory.

    Every process of the run calls this. The directory is created if it is missing.

    Args:
      directory: the directory.
      what: what is kept there, for the message ("the store acts/").
    """
    check_local(directory)
    name = "".join(f"{byte:02x}" for byte in from_every(np.frombuffer(secrets.token_bytes(8), np.uint8))[0])
    mark, error = Path(directory) / f".shared.{name}.tmp", None
    if is_first_process():
        try:
            make_directory(directory).joinpath(mark.name).touch()
        except (OSError, WriteError) as failed:
            error = failed if isinstance(failed, WriteError) else WriteError.of(mark, failed)
    written = not from_every(np.asarray(error is not None))[0]
    seen = from_every(np.asarray(written and _appears(mark)))
    barrier(f"shared disk {name}")
    if is_first_process():
        with contextlib.suppress(OSError):
            mark.unlink()
    if error is not None:
        raise error
    if not written:
        raise UserError(f"process 0 cannot write into {directory}: give {what} another place")
    if blind := np.flatnonzero(~seen).tolist():
        some = "process" if len(blind) == 1 else "processes"
        raise UserError(
            f"{some} {', '.join(map(str, blind))} cannot see the files that process 0 writes into {directory}: "
            f"{what} needs a disk that all hosts share"
        )


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
