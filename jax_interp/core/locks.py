"""Locks between processes (POSIX `flock`): one writer at a time of a directory or a file.

    with locked("acts/.lock", "the store acts/"):      a second process gets a UserError that names this one
        ...

The kernel releases a lock when its process ends, however it ends. A lock file without a holder means nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from jax_interp.core.errors import UserError
from jax_interp.core.local_paths import check_local
from jax_interp.core.processes import is_first_process


class LockError(UserError):
    """Another process holds the lock, or no lock can be made at this place."""


@contextlib.contextmanager
def locked(
    path: Path | str, what: str, *, wait: bool = False, keep: bool = False, every_process: bool = False
) -> Iterator[None]:
    """Hold a lock within the block.

    Of a run over several processes, the first one takes the lock for all of them.

    Args:
      path: the lock file. Missing directories are created.
      what: what the lock protects, for the message ("the run runs/sae").
      wait: wait until the lock is free.
      keep: leave the lock file after the block. Otherwise it is removed, with the directories that were made for it and
        stayed empty.
      every_process: each process of the run takes a lock of its own.

    Raises:
      LockError: another process holds the lock (unless `wait`), or the lock file cannot be made.
    """
    check_local(path)
    if not (every_process or is_first_process()):
        yield
        return
    path = Path(path)
    made = [directory for directory in (path.parent, *path.parent.parents) if not directory.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = hold(path, wait=wait)
    except OSError as error:
        _remove_empty(made)
        raise LockError(f"cannot work on {what}: no lock at {path}: {error.strerror or error}") from error
    if handle is None:
        raise LockError(f"process {_holder(path)} works on {what}: wait for it, stop it, or choose another place")
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        if not keep:
            with contextlib.suppress(OSError):
                path.unlink()
        os.close(handle)
        _remove_empty(made)


def hold(path: Path, *, wait: bool = False) -> int | None:
    """Open a file, which is created if it is missing, and lock it.

    Args:
      path: the file.
      wait: wait until the lock is free.

    Returns:
      The open handle; closing it releases the lock. None: another process holds the lock.

    Raises:
      OSError: the file cannot be opened or locked.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(handle, path):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the holder before removed the file between our open and our lock: take the next one


def _is(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:20].strip() or "unknown"
    except (OSError, ValueError):
        return "unknown"


def _remove_empty(directories: list[Path]) -> None:
    for directory in directories:
        with contextlib.suppress(OSError):  # it is not empty
            directory.rmdir()
