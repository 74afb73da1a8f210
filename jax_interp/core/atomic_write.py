"""Atomic writes: a reader sees the complete previous file or the complete new file, even if the writer is killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path | str) -> None:
    """Flush a file, or the entries of a directory, to the disk. Without this a rename may not survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to `path` at the end of the block.

    If the block raises an error, the temporary file is removed and `path` does not change. A process that is killed
    leaves `.<name>.tmp`, which the next write of the same file replaces. Only one process may write the file at a time.

    Args:
      path: the file to create or replace.

    Yields:
      The temporary path, in the same directory. The block writes this file.

    Example:
        with replacing("rows.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, rows)
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def atomic_write(path: Path | str, content: str | bytes) -> Path:
    """Write `content` to `path` atomically (see `replacing`).

    Args:
      path: the file to create or replace. Its directory must exist.
      content: the bytes of the file, or its text, which is written as UTF-8.

    Returns:
      `path`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)
