"""JSON files: written with a digest, read strictly.

    write_json("runs/sae/evaluation.json", {"fvu": 0.1})
    read_json("runs/sae/evaluation.json")                   {"fvu": 0.1}

The digest stands in the file under "digest": the SHA-256 of the other entries. A file that has one and was changed is
refused. A file without one (of an earlier version, of another program, written by hand) is read as it is.

Every JSON text that the package reads goes through `parse_json`. It refuses what Python's parser lets pass or dies of:
keys that stand twice, NaN and Infinity, numbers beyond 64 bits, deep nesting, halves of characters, enormous files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.errors import UserError

MAX_BYTES = 1 << 26
"""The longest text that is parsed. A parsed text takes up to 25 times its size in memory."""
MAX_DEPTH = 100
DIGEST = "digest"


class JsonError(UserError):
    """A JSON file that is missing, damaged or not what the reader needs."""


def write_json(
    path: Path | str,
    values: Mapping[str, Any],
    *,
    indent: int | None = 2,
    nonfinite: bool = False,
    every_process: bool = False,
) -> Path:
    """Write a JSON object with its digest, atomically.

    Args:
      path: the file to create or replace. Its directory must exist.
      values: JSON values, without an entry "digest".
      indent: the indentation of the text.
      nonfinite: write NaN and infinity as `NaN` and `Infinity`, as `read_json(nonfinite=True)` reads them.
      every_process: as in `atomic_write.replacing`.

    Returns:
      `path`.

    Raises:
      WriteError: the file cannot be written.
      ValueError: a number is not finite.
    """
    text = json.dumps({**values, DIGEST: json_digest(values)}, indent=indent, allow_nan=nonfinite)
    return atomic_write(path, text + "\n", every_process=every_process)


def read_json(path: Path | str, *, nonfinite: bool = False) -> dict[str, Any]:
    """Read a JSON object, and compare it with its digest if it has one.

    Args:
      path: the file.
      nonfinite: accept the numbers NaN and Infinity, for files of measurements.

    Returns:
      The object, without its digest.

    Raises:
      JsonError: the file is missing, is not strict JSON (see `parse_json`), holds something else than an object, or was
        changed since it was written.
    """
    value = parse_json(read_bytes(path), str(path), nonfinite=nonfinite)
    if not isinstance(value, dict):
        raise JsonError(f"{path} should hold a JSON object, it holds a {type(value).__name__}")
    if not _is_whole(value):
        raise JsonError(
            f"{path} was changed since it was written (its digest differs): write it again; or, if you changed it on "
            f'purpose, remove the entry "{DIGEST}" from it'
        )
    value.pop(DIGEST, None)
    return value


def _is_whole(value: dict[str, Any]) -> bool:
    """Whether an object has the digest of its other entries, or none. A digest under a damaged name is noticed."""
    named = [DIGEST] if DIGEST in value else [n for n, v in value.items() if isinstance(v, str) and len(v) == 64]
    matches = [value[n] == json_digest({m: v for m, v in value.items() if m != n}) for n in named]
    return all(matches) if DIGEST in value else not any(matches)


def parse_json(text: str | bytes, where: str, *, nonfinite: bool = False) -> Any:
    """Parse a JSON text strictly.

    Args:
      text: the text, or its UTF-8 bytes.
      where: the name of the text in messages.
      nonfinite: accept the numbers NaN and Infinity.

    Returns:
      The value.

    Raises:
      JsonError: the text is not UTF-8, not JSON, longer than 64 MiB, or nested more than 100 deep; an object has the
        same key twice; a number is not finite, or an integer has more than 64 bits; a string is not Unicode text.
    """
    if len(text) > MAX_BYTES:
        raise JsonError(f"{where} has {len(text):,} bytes; JSON of up to {MAX_BYTES:,} is read")
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=_object)
        _check(value, nonfinite)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()  # raises where half of a surrogate pair stands alone
    except RecursionError:
        raise JsonError(f"{where} is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # JSONDecodeError and UnicodeError are ValueErrors
        raise JsonError(f"{where} is not JSON: {error}") from error
    return value


def read_bytes(path: Path | str) -> bytes:
    """The bytes of a regular file, at most `MAX_BYTES` of them.

    Raises:
      JsonError: the file is missing, cannot be read, is longer, or is no regular file.
    """
    path = Path(path)
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise JsonError(f"{path} is a {'directory' if stat.S_ISDIR(about.st_mode) else 'device'}, not a file")
        if about.st_size > MAX_BYTES:
            raise JsonError(f"{path} has {about.st_size:,} bytes; JSON of up to {MAX_BYTES:,} is read")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise JsonError(f"there is no {path.name} in {path.parent}{_beside(path.parent)}") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise JsonError(f"cannot read {str(path)!r}: {getattr(error, 'strerror', None) or error}") from error


def json_digest(values: Mapping[str, Any]) -> str:
    """The SHA-256 of JSON values, as hexadecimal digits. The order of keys and the layout of the text do not matter."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def is_file_name(name: object, suffix: str = "") -> bool:
    """Whether `name` (from an index file) is a bare file name, which cannot lead out of its directory."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and len(name.encode(errors="replace")) <= 255
        and not set(name) & set("/\\\0")
        and name.endswith(suffix)
    )


def _beside(directory: Path) -> str:
    try:
        names = sorted(other.name for other in directory.iterdir())
    except OSError:
        return ""
    return f" (which has {', '.join(names[:10]) or 'nothing'})"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"the key {twice!r:.80} stands twice")
    return value


def _check(value: Any, nonfinite: bool) -> None:
    """Raise ValueError for numbers that are not finite or have more than 64 bits, and for deep nesting."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif type(item) is float and not (nonfinite or math.isfinite(item)):
                raise ValueError(f"the number {item} is not finite")
            elif type(item) is int and not -(1 << 63) <= item < 1 << 64:
                raise ValueError("an integer has more than 64 bits")
        level = below
        if not level:
            return
    raise RecursionError
