"""Experiments: a published claim, a run that tests it, our figures beside the published figures, and a plot.

An experiment is a module of this package with

- a docstring that states the claim (first line) and its source,
- a frozen dataclass `Config`, whose defaults are the run that the README reports,
- `QUICK`, a config that takes less than a minute and shows that the code runs,
- `run(config)`, which returns `Results`,
- `figure(data)`, which plots `Results.data`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import importlib
import json
import pkgutil
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jax_interp.core.atomic_write import atomic_write
from jax_interp.core.config_json import to_json
from jax_interp.core.errors import UserError
from jax_interp.training import SaveTo

HERE = Path(__file__).parent
RESULTS, FIGURES = HERE / "results", HERE / "figures"


@dataclasses.dataclass(frozen=True)
class Row:
    """One quantity: our figure, the published figure, and whether the claim holds (None: there is no comparison)."""

    quantity: str
    ours: str
    published: str = ""
    holds: bool | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """The rows of the table, and the data of the figure: arrays, or nested lists and dicts of numbers."""

    rows: tuple[Row, ...]
    data: dict[str, Any]


def experiment_names() -> list[str]:
    """The names of all experiments, sorted. A module whose name starts with `_` is not listed."""
    found = []
    for module in pkgutil.iter_modules([str(HERE)]):
        if module.name.startswith("_") or module.name in ("experiment", "table"):
            continue
        found.append(module.name)
    return sorted(found)


def find_experiment(name: str) -> ModuleType:
    """The module of an experiment. If there is none, raises UserError with all names."""
    if name not in experiment_names():
        raise UserError(f"there is no experiment {name!r}: {', '.join(experiment_names())}, or `table`")
    return importlib.import_module(f"experiments.{name}")


def run_experiment(name: str, config: Any, command: str, results_dir: Path, figures_dir: Path) -> Results:
    """Run an experiment, and write `<name>.json` and `<name>.png`.

    Args:
      name: the experiment.
      config: a `Config` of its module.
      command: the command line, for the record.
      results_dir: the folder for the record.
      figures_dir: the folder for the figure.
    """
    module, start = find_experiment(name), time.monotonic()
    results = module.run(config)
    record = {
        "experiment": name,
        "claim": (module.__doc__ or "").strip().splitlines()[0],
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "seconds": round(time.monotonic() - start),
        "config": to_json(config),
        "rows": [dataclasses.asdict(row) for row in results.rows],
        "data": _plain(results.data),
    }
    for folder in (results_dir, figures_dir):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write(results_dir / f"{name}.json", record_text(record))
    draw_figure(name, results.data, figures_dir)
    return results


def record_text(record: dict[str, Any]) -> str:
    """A record as JSON: indented, with each list of numbers on one line."""
    of_numbers = re.compile(r"\[\s+([-\d.eE,\s]+?)\s+\]")
    return of_numbers.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(record, indent=1)) + "\n"


@contextlib.contextmanager
def resumable(name: str, *configs: Any) -> Iterator[SaveTo]:
    """A context manager that gives the argument `run=` of a trainer, for long training runs.

    If the process is killed inside the block, the same experiment resumes the training from its last checkpoint. The
    directory is removed after the block.

    Args:
      name: the name of the training run.
      configs: all values that determine the result. Different configs use different directories.
    """
    digest = hashlib.sha256(json.dumps([to_json(config) for config in configs], sort_keys=True).encode()).hexdigest()
    place = Path("out/experiments/runs") / f"{name}-{digest[:12]}"
    yield SaveTo(place, every=250, keep=1)
    shutil.rmtree(place)


def draw_figure(name: str, data: dict[str, Any], figures_dir: Path = FIGURES) -> None:
    """Draw the figure of an experiment from the data of a record."""
    find_experiment(name).figure(data).savefig(figures_dir / f"{name}.png", dpi=130, facecolor="white")


def load_record(path: Path) -> dict[str, Any]:
    """A record that `run_experiment` wrote. Raises UserError if the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no record of an experiment: {error}") from error


def _plain(value: Any) -> Any:
    """JSON values. Numbers have five significant digits."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "shape"):
        return _plain(np.asarray(value).tolist())
    return float(f"{value:.5g}") if isinstance(value, float) else value
