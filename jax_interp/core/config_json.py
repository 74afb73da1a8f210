"""Configs: frozen dataclasses that are written as JSON and read back according to their types.

A field can be a bool, int, float, str, Path, Enum, Literal, None, another dataclass, a union of these, a base class
with a registry (the field then takes any registered variant), or a list, tuple or dict of these. A dataclass is written
with its class name under "type". A union of dataclasses is therefore read back as the class that was written, and a
file that holds another class is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json, write_json
from jax_interp.core.registry import Registry, registry_of

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Older:
    """How earlier versions wrote one dataclass."""

    name: str
    renamed: Mapping[str, str]
    removed: Mapping[str, Any]
    rewritten: Callable[[dict[str, Any]], dict[str, Any]] | None


_OLDER: dict[str, _Older] = {}  # by the name under "type"


def reads_older_files(
    *,
    renamed: Mapping[str, str] | None = None,
    removed: Mapping[str, Any] | None = None,
    called: Sequence[str] = (),
    rewritten: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Callable[[type[T]], type[T]]:
    """Class decorator: accept files that an earlier version of this dataclass wrote.

    A run that an earlier version started can then be resumed with the same config.

    Args:
      renamed: earlier name of a field -> current name.
      removed: name of a removed field -> the only value that a file may have for it. A file with another value is
        refused, because the class no longer supports that value.
      called: earlier names of the class.
      rewritten: a function for other changes, such as a field that moved into another dataclass. It takes the JSON
        values of the fields, in the earlier or the current form, and returns the current form. It is applied first.
        Nested dataclasses are already in the current form.

    Raises:
      TypeError: another class has, or had, one of these names.

    Example:
        @reads_older_files(renamed={"lr": "learning_rate"}, removed={"nesterov": False}, called=("AdamConfig",))
        @dataclasses.dataclass(frozen=True)
        class Adam: ...
    """

    def register(kind: type[T]) -> type[T]:
        older = _Older(kind.__name__, dict(renamed or {}), dict(removed or {}), rewritten)
        taken = [n for n in (kind.__name__, *called) if n in _OLDER and _OLDER[n].name != kind.__name__]
        if taken:
            raise TypeError(
                f"files of {_OLDER[taken[0]].name} have the name {taken[0]!r}, which {kind.__name__} claims"
            )
        _OLDER.update(dict.fromkeys((kind.__name__, *called), older))
        return kind

    return register


def upgrade(value: Any) -> Any:
    """Convert the JSON values of a config file from the earlier forms that `reads_older_files` declares.

    Raises:
      UserError: a removed field has a value that is no longer supported.
    """
    if isinstance(value, list):
        return [upgrade(item) for item in value]
    if not isinstance(value, dict):
        return value
    out = {name: upgrade(item) for name, item in value.items()}
    older = _OLDER.get(out["type"]) if isinstance(out.get("type"), str) else None
    if older is None:
        return out
    if older.rewritten is not None:
        out = older.rewritten(out)
    for name, only in older.removed.items():
        if name in out and out.pop(name) != only:
            raise UserError(f"{older.name} has no {name!r} any more; only files in which it is {only!r} are read")
    return {older.renamed.get(name, name): item for name, item in out.items()} | {"type": older.name}


def to_json(config: Any, *, nonfinite: bool = False) -> Any:
    """A config as JSON values: dicts, lists, strings, numbers, booleans, None.

    Args:
      config: the config, or results of the same types.
      nonfinite: let NaN and infinity pass, for results, which `write_json(..., nonfinite=True)` then writes.

    Raises:
      UserError: a value is of a type that configs cannot hold.

    Example:
        from_json(type(config), to_json(config)) == config
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = {
            f.name: to_json(getattr(config, f.name), nonfinite=nonfinite) for f in dataclasses.fields(config) if f.init
        }
        return {"type": type(config).__name__} | fields
    if isinstance(config, enum.Enum):
        return config.name
    if isinstance(config, Path):
        return str(config)
    if isinstance(config, dict):
        return {str(key): to_json(value, nonfinite=nonfinite) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_json(value, nonfinite=nonfinite) for value in config]
    if isinstance(config, float) and not nonfinite and not math.isfinite(config):
        raise UserError(f"a config cannot hold the number {config}: give a finite one")
    if config is None or isinstance(config, (bool, float, str)):
        return config
    if isinstance(config, int):
        return int(config)  # without a subclass
    raise UserError(
        f"a config cannot hold a {type(config).__name__} ({config!r}): use numbers, strings, dataclasses "
        "or lists of them"
    )


def dumps(config: Any) -> str:
    """The text of a config file."""
    return json.dumps(to_json(config), indent=2) + "\n"


def save(config: Any, path: Path | str) -> Path:
    """Write a config file, atomically and with a digest. Raises WriteError.

    A file that is edited later has to lose its entry "digest" (see `json_files.read_json`).
    """
    return write_json(path, to_json(config))


def load(kind: type[T], path: Path | str) -> T:
    """Read a config file.

    Args:
      kind: the dataclass that the file holds.
      path: the file, or a run directory that contains `config.json`.

    Returns:
      The config.

    Raises:
      UserError: the file does not exist, is not JSON (see `json_files.read_json`), or does not describe a `kind` (the
        message names the field).
    """
    path = Path(path)
    path = path / "config.json" if path.is_dir() else path
    if not os.path.exists(path):
        raise UserError(f"no config at {path}")
    value = read_json(path)
    try:
        return from_json(kind, value)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def from_json(kind: type[T], value: Any, where: str = "config") -> T:
    """Read JSON values as a `kind`.

    Missing fields take their defaults. An int is accepted for a float; nothing else is converted.

    Args:
      kind: a dataclass, or any other type that a field can have.
      value: JSON values, as `to_json` makes them.
      where: the name of the value in messages.

    Returns:
      An instance of `kind`.

    Raises:
      UserError: a field has a wrong name or value. The message names the field, its value, and the expected type.
    """
    return _read(kind, upgrade(value), where)


def _type_name(kind: Any) -> str:
    if kind is type(None):
        return "null"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def _wrong(kind: Any, value: Any, where: str) -> UserError:
    return UserError(f"{where} is {json.dumps(value)}, which is not {_type_name(kind)}")


def _read(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or isinstance(kind, TypeVar):
        return value
    if origin is typing.Annotated:
        return _read(arguments[0], value, where)
    if origin in (typing.Union, types.UnionType):
        return _read_union(kind, arguments, value, where)
    if origin is typing.Literal:
        if value in arguments:
            return value
        near = difflib.get_close_matches(str(value), map(str, arguments), n=1)
        raise UserError(
            f"{where} is {json.dumps(value)}; it can be {', '.join(map(json.dumps, arguments))}"
            + (f". Did you mean {json.dumps(near[0])}?" if near else "")
        )
    if (registry := registry_of(kind)) is not None:
        return _read_variant(registry, value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value in kind.__members__:
            return kind[value]
        raise UserError(f"{where} is {json.dumps(value)}; it can be {', '.join(kind.__members__)}")
    if origin in (list, tuple, dict) or kind in (list, tuple, dict):
        return _read_container(kind, origin or kind, arguments, value, where)
    if kind is type(None) and value is None:
        return None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind in (bool, int, str) and type(value) is kind:
        return value
    raise _wrong(kind, value, where)


def _read_union(kind: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    tag = value.get("type") if isinstance(value, dict) else None
    named = [a for a in arguments if getattr(a, "__name__", None) == tag]
    if tag is not None and named:
        return _read(named[0], value, where)
    exact = [a for a in arguments if a is type(value)]  # an int stays an int in int | float
    for argument in (*exact, *arguments):
        try:
            return _read(argument, value, where)
        except UserError:
            continue
    raise _wrong(kind, value, where)


def _read_variant(registry: Registry[Any], value: Any, where: str) -> Any:
    """Read a field that accepts every registered variant of its type. "type" names the variant."""
    tag = value.get("type") if isinstance(value, dict) else None
    if not isinstance(tag, str):
        known = ", ".join(registry.names())
        raise UserError(f'{where} is {json.dumps(value)}; it needs a "type", one of {known}')
    try:
        variant = registry[tag]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return _read_dataclass(variant, value, where)


def _read_container(kind: Any, origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(kind, value, where)
        return {
            _key(arguments[0] if arguments else str, k, where): _read(
                arguments[1] if arguments else Any, v, f"{where}.{k}"
            )
            for k, v in value.items()
        }
    if not isinstance(value, list):
        raise _wrong(kind, value, where)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise UserError(f"{where} has {len(value)} entries, it needs {len(arguments)}: {json.dumps(value)}")
        return tuple(_read(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value)))
    element = arguments[0] if arguments else Any
    if element is float and set(map(type, value)) <= {float, int}:
        return origin(map(float, value))  # long lists of statistics
    return origin(_read(element, v, f"{where}[{i}]") for i, v in enumerate(value))


def _key(kind: Any, key: str, where: str) -> Any:
    """The key of a dict, from its string in JSON."""
    if kind is int:
        try:
            return int(key)
        except ValueError:
            raise _wrong(int, key, f"{where}, key") from None
    return _read(kind, key, f"{where}, key")


def _read_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(kind, value, where)
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    tag = value.get("type")
    if "type" not in fields and tag not in (None, kind.__name__):
        raise UserError(f"{where} is a {tag}, not a {kind.__name__}")
    given = {k: v for k, v in value.items() if k in fields or k != "type"}
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            raise UserError(
                f"{where} has no {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" {kind.__name__} has {', '.join(fields)}"
            )
    missing = [
        f.name
        for f in fields.values()
        if f.name not in given and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)} of {kind.__name__}")
    return kind(**{name: _read(hints[name], v, f"{where}.{name}") for name, v in given.items()})


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The fields in which two configs differ, one line per field: `optimizer.learning_rate: 0.001 -> 0.01`.

    Args:
      old: a config as JSON values.
      new: another config as JSON values.
      where: the dotted name of the field that contains `old` and `new`.

    Returns:
      One line for each field that differs, in the order of `new`.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*new, *(name for name in old if name not in new)]
        return [
            line
            for name in names
            for line in differences(
                old.get(name, "(absent)"), new.get(name, "(absent)"), f"{where}.{name}" if where else name
            )
        ]
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return [] if same else [f"{where}: {json.dumps(old)} -> {json.dumps(new)}"]
