"""Files that are either the old one or the new one, never half of either, whatever happens to the process."""

from __future__ import annotations

import os
from pathlib import Path


def sync(path: Path | str) -> None:
    """Make a file's bytes durable, or the names in a directory: a rename survives a power cut only after this."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path | str, content: str | bytes) -> Path:
    """Write `content` beside `path` under a temporary name, flush it to the disk, rename it to `path`.

    A reader sees the previous file or the whole new one. A process killed on the way leaves `.<name>.tmp`, which the
    next write of the same file replaces. One writer at a time: hold the run's lock.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)
    return path
