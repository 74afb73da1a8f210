"""What a run leaves on a disk if it is stopped at any of its operations: killed, or with the power cut.

A kill leaves the files as they are. A power cut leaves less: the bytes of a file as of its last fsync. For names there
are two extremes, and a file system may do either: every create, rename and remove is on the disk at once (`eager`), or
only those that an fsync of their directory has confirmed (`lazy`).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

Image = dict[str, bytes | None]
"""Relative path -> content; None for a directory."""

_listener: list[Callable[[str, str], None]] = []
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def _audit(event: str, arguments: tuple) -> None:
    if not _listener:
        return
    if event == "open" and isinstance(arguments[0], (str, os.PathLike)) and (arguments[2] or 0) & _WRITES:
        _listener[0](event, os.fspath(arguments[0]))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"):
        _listener[0](event, str(arguments[0]))


sys.addaudithook(_audit)  # a hook cannot be removed: it does nothing without a listener


@contextlib.contextmanager
def operations(listen: Callable[[str, str], None]) -> Iterator[None]:
    """Call `listen(operation, path)` before every operation of Python on files that changes them, and every fsync."""
    fsync, busy = os.fsync, []

    def call(event: str, path: str) -> None:
        if not busy:  # what the listener does itself does not count
            busy.append(True)
            try:
                listen(event, path)
            finally:
                busy.clear()

    def listened(handle: int) -> None:
        call("fsync", os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    _listener.append(call)
    os.fsync = listened
    try:
        yield
    finally:
        os.fsync = fsync
        _listener.clear()


class Trace:
    """Images of `root` at every operation, by the kind of stop."""

    def __init__(self, root: Path):
        self.root = root
        self.images: dict[str, list[Image]] = {"kill": [], "eager": [], "lazy": []}
        self._identities: dict[int, int] = {}  # inode -> number of the file; inodes are used again, numbers are not
        self._count = 0
        self._bytes: dict[int, bytes] = {}  # number -> bytes at the last fsync
        self._names: dict[int, dict[str, tuple[int, bool]]] = {}  # number of a directory -> entries at its last fsync
        self._scan()

    def __call__(self, event: str, path: str) -> None:
        try:
            names, content, numbers = self._scan()
        except (OSError, KeyError):  # a thread of orbax renamed something meanwhile: this moment is left out
            return
        top = numbers[str(self.root)]
        self.images["kill"].append(_image(top, names, content))
        self.images["eager"].append(_image(top, names, self._bytes))
        self.images["lazy"].append(_image(top, self._names, self._bytes))
        if event == "fsync" and path in numbers:
            number = numbers[path]
            if number in names:
                self._names[number] = names[number]
            else:
                self._bytes[number] = content[number]

    def _scan(self):
        """The entries of directories and the contents of files by number, and the numbers by path."""
        names: dict[int, dict[str, tuple[int, bool]]] = {}
        content: dict[int, bytes] = {}
        inodes = {str(self.root): self.root.stat().st_ino}
        for place, directories, files in os.walk(self.root):
            for name in (*directories, *files):
                path = os.path.join(place, name)
                with contextlib.suppress(FileNotFoundError):
                    inodes[path] = os.stat(path).st_ino
        gone = self._identities.keys() - set(inodes.values())
        for inode in gone:
            del self._identities[inode]
        for inode in inodes.values():
            if inode not in self._identities:
                self._count += 1
                self._identities[inode] = self._count
        numbers = {path: self._identities[inode] for path, inode in inodes.items()}
        for path, number in numbers.items():
            if os.path.isdir(path):
                names.setdefault(number, {})
            else:
                content[number] = Path(path).read_bytes()
            if path != str(self.root):
                parent = numbers[os.path.dirname(path)]
                names.setdefault(parent, {})[os.path.basename(path)] = (number, os.path.isdir(path))
        return names, content, numbers


def _image(number: int, names: dict, content: dict, path: str = "") -> Image:
    image: Image = {}
    for name, (below, directory) in names.get(number, {}).items():
        full = os.path.join(path, name)
        image[full] = None if directory else content.get(below, b"")
        if directory:
            image |= _image(below, names, content, full)
    return image


def write_image(image: Image, place: Path) -> None:
    """Make the files of an image below `place`."""
    place.mkdir()
    for path, content in image.items():  # directories come before what is in them
        if content is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(content)
