"""The tensors of a directory of safetensors files, read one at a time.

Nothing in a file is trusted: names in an index are file names of this directory, headers are checked by `safetensors`
(length, offsets, overlaps), and pickles are never opened.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jax_interp.core.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: its header, and nothing read yet."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        """That part of the tensor, alone."""
        with _open(self.file) as handle:
            return handle.get_slice(self.name)[window]


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises `UserError` for a file that is missing or is not one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = sorted(path.name for path in file.parent.glob("*"))[:10]
        raise UserError(
            f"there is no {file.name} in {file.parent} (which has {', '.join(beside) or 'nothing'})"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} should hold a JSON object, it holds a {type(value).__name__}")
    return value


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """Every tensor of the checkpoint by name. Reads headers only."""
    found: dict[str, Stored] = {}
    for file, names in _files(directory).items():
        with _open(file) as handle:
            have = set(handle.keys())
            if missing := sorted((names if names is not None else have) - have):
                raise UserError(f"{INDEX} says that {file.name} holds {missing[0]!r}, it does not")
            for name in have:
                header = handle.get_slice(name)
                found[name] = Stored(file, name, tuple(header.get_shape()), header.get_dtype())
    return found


def _files(directory: Path) -> dict[Path, set[str] | None]:
    """The files of a checkpoint, each with the tensors that the index says are in it."""
    if (directory / WEIGHTS).is_file():
        return {directory / WEIGHTS: None}
    if not (directory / INDEX).is_file():
        others = sorted(
            path.name for path in directory.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".safetensors")
        )
        hint = f" ({', '.join(others)} cannot be used: convert to safetensors)" if others else ""
        raise UserError(f"{directory} has neither {WEIGHTS} nor {INDEX}{hint}")
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{directory / INDEX} has no weight_map")
    files: dict[Path, set[str] | None] = {}
    for tensor, name in weight_map.items():
        # A bare name cannot leave the directory. Links are followed: the hub's cache is made of them.
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise UserError(
                f"{directory / INDEX} places {tensor!r} in {name!r}, which is no safetensors file beside it"
            )
        if not (directory / name).is_file():
            raise UserError(f"{directory / INDEX} places {tensor!r} in {name}, which is missing")
        names = files.setdefault(directory / name, set())
        assert names is not None
        names.add(tensor)
    return files


def _open(file: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is not a whole safetensors file: {error}") from None
