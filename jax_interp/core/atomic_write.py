"""Atomic writes: a reader sees the complete previous file or the complete new file, even if the writer is killed.

Of a run over several processes, the first one writes. The others call the same functions, which then write nothing.

Several programs may write one file at the same time. Each writes a temporary file of its own, and the last rename
decides. A place that cannot be written (a full disk, a read-only directory) is a `WriteError`, and nothing is left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jax_interp.core.errors import UserError
from jax_interp.core.local_paths import check_local
from jax_interp.core.locks import hold
from jax_interp.core.processes import is_first_process

_REMEDIES = {
    errno.ENOSPC: "free some space, or give another place",
    errno.EDQUOT: "free some space, or give another place",
    errno.EMFILE: "this process has too many files open: raise `ulimit -n`",
    errno.ENFILE: "this machine has too many files open",
    errno.EFBIG: "the file is larger than this place or `ulimit -f` allows",
}


class WriteError(UserError):
    """A file or directory that cannot be written."""

    @classmethod
    def of(cls, path: Path | str, error: OSError) -> WriteError:
        """The message for an error of the operating system, with what to do."""
        remedy = _REMEDIES.get(error.errno or 0, "give another place")
        return cls(f"cannot write {str(path)!r}: {error.strerror or error}; {remedy}")


def sync(path: Path | str) -> None:
    """Flush a file, or the entries of a directory, to the disk. Without this a rename may not survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(directory: Path | str) -> None:
    """Flush every file and directory below `directory`, and `directory` itself, to the disk."""
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)


def make_directory(path: Path | str, *, every_process: bool = False) -> Path:
    """Create a directory with its parents, if it is missing, and flush the new names to the disk. Raises WriteError.

    Only the first process of a run does this, unless `every_process`.
    """
    check_local(path)
    if not (every_process or is_first_process()):
        return Path(path)
    missing = [place for place in (Path(path), *Path(path).parents) if not place.exists()]
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        for place in missing:
            sync(place.parent)
    except OSError as error:
        raise WriteError.of(path, error) from error
    return Path(path)


def is_taken(directory: Path | str) -> bool:
    """Whether a place for a new directory holds something already: a file, or a directory that is not empty.

    Only the first process of a run asks this, because the others may come here when it has written already.
    """
    directory = Path(directory)
    return is_first_process() and directory.exists() and (not directory.is_dir() or any(directory.iterdir()))


def check_place(path: Path | str) -> None:
    """Raises WriteError if a new file cannot be written because its directory is missing. Only the first process of a
    run asks this."""
    if is_first_process() and not Path(path).parent.is_dir():
        raise WriteError(f"cannot write {path}: there is no directory {Path(path).parent}")


@contextlib.contextmanager
def replacing(path: Path | str, *, every_process: bool = False) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to `path` at the end of the block.

    If the block raises an error, the temporary file is removed and `path` does not change. A process that is killed
    leaves `.<name>.<random>.tmp`, which the next write of the same file removes.

    Args:
      path: the file to create or replace.
      every_process: False: of a run over several processes only the first one writes the file. True: each one writes
        its own file.

    Yields:
      The temporary path, in the same directory. The file exists and is empty. The block opens it and writes into it,
      and does not replace it by another file.

    Raises:
      WriteError: the block or the rename raised an `OSError`.

    Example:
        with replacing("rows.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, rows)
    """
    check_local(path)
    path = Path(path)
    if not (every_process or is_first_process()):
        with tempfile.TemporaryDirectory() as elsewhere:
            (Path(elsewhere) / path.name).touch()
            yield Path(elsewhere) / path.name
        return
    try:
        temporary, handle = _temporary(path)
    except OSError as error:
        raise WriteError.of(path, error) from error
    try:
        yield temporary
        os.fsync(handle)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise WriteError.of(path, error) from error
        raise
    finally:
        os.close(handle)


def atomic_write(path: Path | str, content: str | bytes, *, every_process: bool = False) -> Path:
    """Write `content` to `path` atomically (see `replacing`).

    Args:
      path: the file to create or replace. Its directory must exist.
      content: the bytes of the file, or its text, which is written as UTF-8.
      every_process: as in `replacing`.

    Returns:
      `path`.

    Raises:
      WriteError: the file cannot be written.
    """
    with replacing(path, every_process=every_process) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def _temporary(path: Path) -> tuple[Path, int]:
    """A new locked file beside `path`, with its handle. What killed writers left there (unlocked) is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if (handle := hold(left)) is not None:
                left.unlink()
                os.close(handle)
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if temporary.exists():
            return temporary, handle
        os.close(handle)  # another writer removed it before it was locked
