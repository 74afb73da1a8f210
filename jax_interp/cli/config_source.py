"""Which config a command runs: by name, from a Python module, or from the JSON of a saved run.

    jax-interp train-lm stdlib_tiny                    configs/stdlib_tiny.py
    jax-interp train-lm my/run.py                      any module with a CONFIG
    jax-interp train-lm --config runs/x                runs/x/config.json, and goes on in runs/x

Names are looked up in the repository's `configs/`, or in the copy of it that an installed package carries.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax_interp.core.errors import UserError


@dataclass(frozen=True)
class Found:
    """A config, what to call its run, and the run directory that it came from, if it did."""

    config: Any
    name: str
    run_dir: Path | None = None


def take_source(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """`(source, the other arguments)`: the first argument where it is no option, or what follows `--config`."""
    rest, source = list(argv), None
    if rest and not rest[0].startswith("-"):
        source = rest.pop(0)
    for i, argument in enumerate(rest):
        if argument == "--config" or argument.startswith("--config="):
            if source is not None:
                raise UserError(f"two configs were given, {source!r} and that of {argument!r}: give one")
            if argument == "--config" and i + 1 == len(rest):
                raise UserError("--config needs a name, a .py file, a config.json or a run directory")
            source = rest[i + 1] if argument == "--config" else argument.partition("=")[2]
            del rest[i : i + (2 if argument == "--config" else 1)]
            break
    return source, rest


def find_config(kind: type, source: str) -> Found:
    """The config of type `kind` that `source` names. Raises UserError."""
    from jax_interp.core import config_json as configs

    path = Path(source)
    if path.suffix == ".json" or (path / "config.json").is_file():
        directory = path if path.is_dir() else path.parent
        is_run = (directory / "config.json").is_file()
        of_run = path.is_dir() or path.name == "config.json"
        name = directory.absolute().name if of_run else path.stem
        return Found(configs.load(kind, path), name, directory if is_run and of_run else None)
    if path.suffix == ".py":
        return Found(_of_module(path, kind), path.stem)
    name = source.replace("-", "_")
    for directory in directories():
        if (directory / f"{name}.py").is_file():
            return Found(_of_module(directory / f"{name}.py", kind), name)
    if path.is_dir():  # after the names: a folder that is called as one, and is no run, does not hide it
        configs.load(kind, path)  # says what it lacks
    if len(path.parts) > 1:
        raise UserError(f"no config at {source}: it is neither a .py file, a config.json nor a run directory")
    names = known_names(kind)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UserError(f"no config {source!r}. {hint}There are {', '.join(names)}; or give a .py file or a run directory")


def directories() -> list[Path]:
    """Where named configs are, first match first."""
    package = Path(__file__).resolve().parents[1]
    repository = package.parent
    places = [repository / "configs"] if (repository / "pyproject.toml").is_file() else []
    return [place for place in (*places, package / "configs") if place.is_dir()]


def known_names(kind: type) -> list[str]:
    """The names of the configs of one type."""
    names = []
    for path in sorted({p.stem: p for place in reversed(directories()) for p in place.glob("*.py")}.values()):
        try:
            _of_module(path, kind)
        except UserError:
            continue
        names.append(path.stem)
    return sorted(names)


def _of_module(path: Path, kind: type) -> Any:
    if not path.is_file():
        raise UserError(f"no config at {path}")
    spec = importlib.util.spec_from_file_location(f"jax_interp_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python module")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} does not run: {type(error).__name__}: {error}") from error
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, kind):
        what = "has no CONFIG" if config is None else f"has a CONFIG of type {type(config).__name__}"
        raise UserError(f"{path} {what}; this command needs a {kind.__name__}")
    return config


def resolve(kind: type, argv: Sequence[str], *, command: str, shown_in_help: str) -> tuple[Found, list[str]]:
    """The config that `argv` names, and the other arguments. `--help` without one shows the defaults of
    `shown_in_help`. UserError where none is named."""
    source, rest = take_source(argv)
    if source is None and any(argument in ("-h", "--help") for argument in rest):
        source = shown_in_help
    if source is None:
        names = ", ".join(known_names(kind)) or "none by name"
        raise UserError(f"{command} needs a config: {names}; or a .py file, a config.json or a run directory")
    return find_config(kind, source), rest
