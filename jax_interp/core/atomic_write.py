"""Files that appear whole: a reader sees the previous file or the new one, never a part, whatever ends the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path | str) -> None:
    """Flush a file's bytes to the disk, or the names in a directory. Only then does a rename survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to `path` at the end of the block.

    Nothing is renamed where the block raises, and the temporary file is removed. A process that is killed on the way
    leaves `.<name>.tmp`, which the next write of the same file replaces. One writer at a time: hold the run's lock.

    Args:
      path: the file to create or replace.

    Yields:
      The temporary path, in the same directory. The block writes it.

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
    """Write `content` to `path`, whole or not at all: see `replacing`.

    Args:
      path: the file to create or replace. Its directory exists.
      content: the bytes of the file, or its text, written as UTF-8.

    Returns:
      `path`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)
