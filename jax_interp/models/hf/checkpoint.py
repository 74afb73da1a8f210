"""A checkpoint: a directory of safetensors files. Its tensors are read one at a time.

The files are not trusted. The names in an index must be file names in this directory, `safetensors` checks the headers
(length, offsets, overlaps), and pickles are never opened.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.tensor_files import is_file_name, open_tensors, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. Only the header has been read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    """The name of the dtype in safetensors: "F32", "BF16"."""

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        """Read the part of the tensor that `window` selects."""
        with open_tensors(self.file) as handle:
            return handle.get_slice(self.name)[window]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by name. Only headers are read.

    Raises:
      UserError: a file is missing or damaged, or the index does not agree with the files.
    """
    tensors: dict[str, StoredTensor] = {}
    for file, names in _files(directory).items():
        with open_tensors(file) as handle:
            have = set(handle.keys())
            if missing := sorted((names if names is not None else have) - have):
                raise UserError(f"{INDEX} places {missing[0]!r} in {file.name}, but it does not have this tensor")
            for name in have:
                header = handle.get_slice(name)
                tensors[name] = StoredTensor(file, name, tuple(header.get_shape()), header.get_dtype())
    return tensors


def _files(directory: Path) -> dict[Path, set[str] | None]:
    """The files of a checkpoint, each with the tensors that the index places in it (None without an index)."""
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
        # A bare name cannot leave the directory. Links are followed, because the hub's cache consists of links.
        if not is_file_name(name, ".safetensors"):
            raise UserError(
                f"{directory / INDEX} places {tensor!r} in {name!r}, which is not a safetensors file in this directory"
            )
        if not (directory / name).is_file():
            raise UserError(f"{directory / INDEX} places {tensor!r} in {name}, which is missing")
        names = files.setdefault(directory / name, set())
        assert names is not None
        names.add(tensor)
    return files
