"""Run configs by name, from a Python file, or from the JSON of a saved run.

    find_config(DictionaryRunConfig, "stdlib_small_topk").config    configs/stdlib_small_topk.py
    find_config(DictionaryRunConfig, "my/run.py").config            any Python file that defines CONFIG
    find_config(DictionaryRunConfig, "runs/x").config               runs/x/config.json

A name is looked up in the repository's `configs/`, or in the copy of it inside the installed package.
"""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from jax_interp.core import config_json
from jax_interp.core.errors import UserError

Config = TypeVar("Config")


@dataclass(frozen=True)
class FoundConfig(Generic[Config]):
    """A config and where it came from.

    Args:
      config: the config.
      name: the name of its run. `runs/<name>` is the default run directory.
      run_dir: the run directory that the config was read from; None if it was not read from one.
    """

    config: Config
    name: str
    run_dir: Path | None = None


def find_config(kind: type[Config], source: str) -> FoundConfig[Config]:
    """Find and read the config that `source` names.

    Args:
      kind: the class of the config, such as `DictionaryRunConfig`.
      source: the name of a file in `configs/` (with "-" or "_"), the path of a Python file with a `CONFIG`, of a JSON
        file, or of a run directory.

    Returns:
      The config, the name of its run, and its run directory if it has one.

    Raises:
      UserError: there is no such config, or it is of another class, or its file cannot be read.
    """
    path = Path(source)
    if path.suffix == ".json" or (path / "config.json").is_file():
        directory = path if path.is_dir() else path.parent
        is_run = (directory / "config.json").is_file()
        of_run = path.is_dir() or path.name == "config.json"
        name = directory.absolute().name if of_run else path.stem
        return FoundConfig(config_json.load(kind, path), name, directory if is_run and of_run else None)
    if path.suffix == ".py":
        return FoundConfig(_from_python(path, kind), path.stem)
    name = source.replace("-", "_")
    for directory in directories():
        if (directory / f"{name}.py").is_file():
            return FoundConfig(_from_python(directory / f"{name}.py", kind), name)
    if path.is_dir():  # after the names: a folder with the name of a config does not hide the config
        config_json.load(kind, path)  # raises, and says that there is no config.json
    if len(path.parts) > 1:
        raise UserError(f"no config at {source}: give a .py file, a config.json or a run directory")
    names = known_names(kind)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"no config {source!r}. {hint}The configs by name are {', '.join(names)}; a .py file or a run directory is "
        "accepted too"
    )


def directories() -> list[Path]:
    """The directories of named configs, in the order in which they are searched."""
    package = Path(__file__).resolve().parents[1]
    repository = package.parent
    places = [repository / "configs"] if (repository / "pyproject.toml").is_file() else []
    return [place for place in (*places, package / "configs") if place.is_dir()]


def known_names(kind: type) -> list[str]:
    """The names of all configs of one class, sorted."""
    names = []
    for path in {p.stem: p for place in reversed(directories()) for p in place.glob("*.py")}.values():
        try:
            _from_python(path, kind)
        except UserError:
            continue
        names.append(path.stem)
    return sorted(names)


def _from_python(path: Path, kind: type[Config]) -> Config:
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
