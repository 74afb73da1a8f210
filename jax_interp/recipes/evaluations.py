"""The evaluations of one run, in files that never replace each other.

    evaluation.json       the first one
    evaluation-2.json     later ones: after a change of `evaluate_sequences`, of the package, ...
    benchmark.json, ...   the same for benchmarks

Figures that are equal to those of a file are not written again. Reports show the newest evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import json_digest, read_json, write_json
from jax_interp.core.locks import locked

Kind = Literal["evaluation", "benchmark"]


def evaluations(directory: Path, kind: Kind = "evaluation") -> dict[int, Path]:
    """The evaluations in a directory by their number, the newest last."""
    found, name = {}, re.compile(rf"{kind}(?:-(\d+))?\.json")
    for path in directory.iterdir() if directory.is_dir() else ():
        if (match := name.fullmatch(path.name)) is not None:
            found[int(match[1] or 1)] = path
    return dict(sorted(found.items()))


def newest_evaluation(directory: Path) -> Path:
    """The newest evaluation in a directory; `evaluation.json` if there is none."""
    return next(reversed(evaluations(directory).values()), directory / "evaluation.json")


def write_evaluation(directory: Path, figures: Mapping[str, Any], kind: Kind = "evaluation") -> Path:
    """Write the figures of an evaluation under the next free name, unless the newest file has the same figures.

    Args:
      directory: the directory of the run, or of the dictionary.
      figures: JSON values.
      kind: the beginning of the file's name.

    Returns:
      The file with these figures.

    Raises:
      WriteError: the file cannot be written.
    """
    with locked(directory / ".evaluations.lock", f"the evaluations in {directory}", wait=True):
        present = evaluations(directory, kind)
        last = max(present, default=0)
        if last and _has(present[last], figures):
            return present[last]
        name = f"{kind}-{last + 1}.json" if last else f"{kind}.json"
        return write_json(directory / name, figures, nonfinite=True)


def write_new(path: Path, figures: Mapping[str, Any]) -> Path:
    """Write figures to a file that does not exist yet, or that has the same figures.

    Args:
      path: the file.
      figures: JSON values.

    Returns:
      `path`.

    Raises:
      UserError: the file exists and has other content.
      WriteError: the file cannot be written.
    """
    if not path.exists():
        return write_json(path, figures, nonfinite=True)
    if _has(path, figures):
        return path
    raise UserError(f"{path} exists and holds something else: give another name, or remove it")


def _has(path: Path, figures: Mapping[str, Any]) -> bool:
    try:
        return json_digest(read_json(path, nonfinite=True)) == json_digest(figures)
    except UserError:  # damaged: it is left as it is
        return False
