"""What an experiment gives: rows of our figures beside the published ones, and what its picture is drawn from.

An experiment is a module of this package with a docstring that states the claim and its source, a frozen `Config` whose
defaults are the run of record, `QUICK`, the same in under a minute, `run(config) -> Results`, and `figure(data)`, which
draws what `Results.data` holds.
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
    """One quantity: ours, what was published, and whether the claim holds; None where there is nothing to compare."""

    quantity: str
    ours: str
    published: str = ""
    holds: bool | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """The rows of the table, and numbers (arrays, or nested lists and dicts of them) for the figure."""

    rows: tuple[Row, ...]
    data: dict[str, Any]


def names() -> list[str]:
    """The experiments there are."""
    found = []
    for module in pkgutil.iter_modules([str(HERE)]):
        if module.name.startswith("_") or module.name in ("experiment", "table"):
            continue
        found.append(module.name)
    return sorted(found)


def find(name: str) -> ModuleType:
    """The module of an experiment. Raises UserError with the names there are."""
    if name not in names():
        raise UserError(f"there is no experiment {name!r}: {', '.join(names())}, or `table`")
    return importlib.import_module(f"experiments.{name}")


def perform(name: str, config: Any, command: str, results_dir: Path, figures_dir: Path) -> Results:
    """Run it, write `<name>.json` and `<name>.png`."""
    module, start = find(name), time.monotonic()
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
    atomic_write(results_dir / f"{name}.json", written(record))
    draw(name, results.data, figures_dir)
    return results


def written(record: dict[str, Any]) -> str:
    """A record as JSON: indented, but for lists of numbers, which take a line each."""
    of_numbers = re.compile(r"\[\s+([-\d.eE,\s]+?)\s+\]")
    return of_numbers.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(record, indent=1)) + "\n"


@contextlib.contextmanager
def resumable(name: str, *configs: Any) -> Iterator[SaveTo]:
    """`run` for a training that takes an hour: killed within the block, it goes on from its last checkpoint when the
    same experiment is called again. Its directory goes with the block."""
    digest = hashlib.sha256(json.dumps([to_json(config) for config in configs], sort_keys=True).encode()).hexdigest()
    place = Path("out/experiments/runs") / f"{name}-{digest[:12]}"
    yield SaveTo(place, every=250, keep=1)
    shutil.rmtree(place)


def draw(name: str, data: dict[str, Any], figures_dir: Path = FIGURES) -> None:
    """The picture again, from the data of a record."""
    find(name).figure(data).savefig(figures_dir / f"{name}.png", dpi=130, facecolor="white")


def load(path: Path) -> dict[str, Any]:
    """A record that `perform` wrote. Raises UserError."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no record of an experiment: {error}") from error


def _plain(value: Any) -> Any:
    """JSON values, numbers to five significant digits."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "shape"):
        return _plain(np.asarray(value).tolist())
    return float(f"{value:.5g}") if isinstance(value, float) else value
