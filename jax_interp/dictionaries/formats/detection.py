"""Which format files have."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.storage import Saved


def format_named(name: str) -> type[Format]:
    """The format with this name. Raises UserError with the nearest name if there is none."""
    formats = {kind.name: kind for kind in FORMATS}
    if name in formats:
        return formats[name]
    near = difflib.get_close_matches(name, formats, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UserError(f"no format {name!r}. {hint}There are {', '.join(formats)}")


def read_as(kind: type[Format], files: Files) -> Saved:
    """Read files in a format. Raises UserError, also where a setting has another type than its program writes."""
    try:
        return kind.read(files)
    except UserError:
        raise
    except OTHER_TYPES as error:
        raise _not_as_written(kind, files, error) from error


OTHER_TYPES = (AttributeError, LookupError, TypeError, ValueError)


def _not_as_written(kind: type[Format], files: Files, error: Exception) -> UserError:
    where = files.directory if files.selected is None else files.directory / files.selected
    return UserError(f"{where} is not as {kind.title} writes it: {type(error).__name__}: {error}")


def detect(files: Files) -> type[Format]:
    """The one format that recognises the files.

    Raises:
      UserError: no format recognises them, or several do; or a file that could tell is damaged.
    """
    found, refused = [], []
    for kind in FORMATS:
        try:
            if kind.recognise(files):
                found.append(kind)
        except UserError as error:  # another format may still know the files
            refused.append(error)
        except OTHER_TYPES as error:
            refused.append(_not_as_written(kind, files, error))
    where = files.directory if files.selected is None else files.directory / files.selected
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(repr(kind.name) for kind in found)
        raise UserError(f"{where} could be a dictionary of the formats {names}: give format=")
    if refused:
        raise refused[0]
    raise UserError(f"{where} holds no dictionary of a known format. {_seen(files)}{_titles()}")


def _seen(files: Files) -> str:
    """What a folder holds, and the folders in it that may be meant."""
    if files.selected is not None:
        return ""
    names = ", ".join(_few([name for name in files.names() if not name.startswith(".")]))
    below = sorted(path.name for path in files.directory.iterdir() if path.is_dir() and path.name[0] != ".")
    folders = f" Give one of its folders: {', '.join(_few(below))}." if below else ""
    return f"It has {f'the files {names}' if names else 'no files'}.{folders} "


def _few(names: Sequence[str], n: int = 5) -> Iterator[str]:
    yield from names[:n]
    if len(names) > n:
        yield f"... ({len(names)} in all)"


def _titles() -> str:
    return f"Known are {', '.join(f'{kind.name} ({kind.title})' for kind in FORMATS)}; give format= to try one"
