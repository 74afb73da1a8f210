"""A checkpoint: a directory of safetensors files. Its tensors are views of the mapped files.

The files are not trusted. The names in an index must be file names in this directory, headers are checked (length,
offsets, overlaps), and pickles are never opened. Files that `save` wrote are compared with their digests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import is_file_name, read_json
from jax_interp.core.tensor_files import TensorFileError, data_starts, open_tensors, verify_tensors

DTYPES = {"F64": jnp.float64, "F32": jnp.float32, "F16": jnp.float16, "BF16": jnp.bfloat16}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file. Only the header has been read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    """The name of the dtype in safetensors: "F32", "BF16"."""
    start: int
    """The byte of the file at which its values begin."""

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        """The part of the tensor that `window` selects, as a view of the file. Only what is used of it is read."""
        try:
            mapped = np.memmap(self.file, np.dtype(DTYPES[self.dtype]), mode="r", offset=self.start, shape=self.shape)
        except (OSError, ValueError) as error:
            raise TensorFileError(f"{self.file}: {self.name!r:.200} cannot be read: {error}") from error
        return np.asarray(mapped)[window]


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors of a checkpoint by name. Only headers are read, and once the files that have a digest.

    With an index, each tensor comes from the file that the index names. A stale copy in another file is not used.

    Raises:
      UserError: a file is missing or damaged, or the index does not agree with the files.
    """
    tensors: dict[str, StoredTensor] = {}
    unnamed: dict[str, Path] = {}
    for file, names in _files(directory).items():
        verify_tensors(file)
        with open_tensors(file) as handle:
            starts = data_starts(file)
            have = set(handle.keys())
            names = have if names is None else names
            if missing := sorted(names - have):
                raise UserError(f"{INDEX} places {missing[0]!r:.200} in {file.name}, but it does not have this tensor")
            for name in names:
                header = handle.get_slice(name)
                shape, dtype = tuple(header.get_shape()), header.get_dtype()
                tensors[name] = StoredTensor(file, name, shape, dtype, starts[name])
            unnamed |= dict.fromkeys(have - names, file)
    for name in sorted(unnamed.keys() - tensors.keys()):
        raise UserError(
            f"{unnamed[name]} has the tensor {name!r:.200}, which {INDEX} does not name: it may be left over from "
            "another model. Remove it, or name it in the index"
        )
    return tensors


def _files(directory: Path) -> dict[Path, set[str] | None]:
    """The files of a checkpoint, each with the tensors that the index places in it (None without an index)."""
    if (directory / WEIGHTS).is_file() and not (directory / INDEX).is_file():
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
                f"{directory / INDEX} places {tensor!r:.200} in {name!r:.200}, which is not a safetensors file in this "
                "directory"
            )
        if not (directory / name).is_file():
            raise UserError(f"{directory / INDEX} places {tensor!r:.200} in {name:.200}, which is missing")
        names = files.setdefault(directory / name, set())
        assert names is not None
        names.add(tensor)
    if (directory / WEIGHTS).is_file() and directory / WEIGHTS not in files:
        raise UserError(
            f"{directory} has {WEIGHTS}, and {INDEX}, which names other files: one of the two is left over from "
            "another model. Remove it"
        )
    return files
