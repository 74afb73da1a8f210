"""Activations that other programs computed, as blocks of rows: files, datasets of SAELens, arrays of other libraries.

    file_blocks(["acts/shard-0.npy", "acts/shard-1.safetensors"])
    dataset_blocks("cached_activations/", column="blocks.5.hook_resid_post")        needs pyarrow
    array_blocks([torch_tensor, jax_array])                                          through dlpack, without torch

Each block is a NumPy array [row, d]. `import_activations` (activation_import.py) makes a store of them. A value [seq,
pos, d] becomes rows in the order of its positions, without the first `skip_first` positions of each sequence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_interp.core.array_files import map_npy, read_npz
from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json
from jax_interp.core.tensor_files import open_tensors

Block = np.ndarray
"""Rows of activations, [row, d]."""
ENDINGS = (".npy", ".npz", ".safetensors", ".pt", ".pth")


def array_blocks(arrays: Iterable[Any], *, skip_first: int = 0) -> Iterator[Block]:
    """Rows of arrays: NumPy, JAX, or any other that can be exchanged through dlpack, such as torch tensors.

    Args:
      arrays: values [row, d] or [seq, pos, d].
      skip_first: first positions of each sequence to leave out.

    Raises:
      UserError: an array has other axes, is not of floating-point numbers, or cannot be exchanged.

    Example:
        array_blocks(tensor.detach().cpu() for tensor in torch_tensors)
    """
    for i, array in enumerate(arrays):
        yield rows_of(as_numpy(array, f"array {i}"), f"array {i}", skip_first)


def file_blocks(
    paths: Path | str | Sequence[Path | str], *, name: str | None = None, skip_first: int = 0
) -> Iterator[Block]:
    """Rows of `.npy`, `.npz`, `.safetensors` and torch files, in the order of the paths.

    Args:
      paths: the files; or a folder, whose files are read in the order of their names (part-10 after part-9).
      name: the tensor in each file. None: each file holds one tensor.
      skip_first: first positions of each sequence to leave out.

    Raises:
      UserError: there are no files, a file is damaged, of another kind or holds no such tensor, or an array has other
        axes or is not of floating-point numbers.
    """
    for path in _files(paths):
        yield rows_of(_tensor(path, name), str(path), skip_first)


def dataset_blocks(directory: Path | str, *, column: str | None = None, skip_first: int = 0) -> Iterator[Block]:
    """Rows of a dataset that `datasets` saved, such as the activations that SAELens caches. Needs pyarrow.

    Args:
      directory: the folder with `state.json`, `dataset_info.json` and `.arrow` files.
      column: the column with the activations, [pos, d] in each row of the dataset. None: there is one such column.
      skip_first: first positions of each sequence to leave out.

    Raises:
      UserError: pyarrow is missing, a file is missing or damaged, there is no such column, or a value is null or has
        another shape than the dataset says.
    """
    directory = Path(directory)
    column, shape = _column(directory, column)
    for path in _arrow_files(directory):
        for number, part in enumerate(_batches(path, column)):
            values = _values(part, shape, f"batch {number} of {path}, column {column!r}")
            if len(values):
                yield rows_of(values, f"{path}, column {column!r}", skip_first)


def rows_of(array: np.ndarray, what: str, skip_first: int) -> Block:
    """The rows of a value [row, d] or [seq, pos, d]. Raises UserError for other axes and dtypes."""
    if not jax.numpy.issubdtype(array.dtype, np.floating):
        raise UserError(f"{what} has dtype {array.dtype}: activations are floating-point numbers")
    if array.ndim == 2 and not skip_first:
        return array
    if array.ndim == 2:
        raise UserError(f"{what} has rows {list(array.shape)} without positions, so skip_first={skip_first} is unclear")
    if array.ndim != 3:
        raise UserError(f"{what} has shape {list(array.shape)}: activations are [row, d] or [seq, pos, d]")
    if skip_first >= array.shape[1]:
        raise UserError(f"skip_first={skip_first} leaves no position of {what}, which has {array.shape[1]}")
    return array[:, skip_first:].reshape(-1, array.shape[-1])


def as_numpy(array: Any, what: str) -> np.ndarray:
    """An array of another library as a NumPy array, without a copy where this is possible.

    Raises:
      UserError: it has no dlpack, is on a device that JAX does not know, or needs a gradient.
    """
    if isinstance(array, np.ndarray | jax.Array):
        return np.asarray(array)
    if not hasattr(array, "__dlpack__"):
        raise UserError(f"{what} is a {type(array).__name__}: give arrays of NumPy, JAX, torch or another with dlpack")
    try:
        return np.from_dlpack(array)
    except Exception as of_numpy:  # bfloat16 and other devices, which NumPy does not have
        try:
            return np.asarray(jax.dlpack.from_dlpack(array))
        except Exception:
            reason = str(of_numpy).splitlines()[0]
            raise UserError(
                f"{what} cannot be exchanged through dlpack: {reason}; give a detached tensor on the CPU"
            ) from of_numpy


def _files(paths: Path | str | Sequence[Path | str]) -> list[Path]:
    if not isinstance(paths, str | Path):
        found = [Path(path) for path in paths]
    elif Path(paths).is_dir():
        found = [path for path in Path(paths).iterdir() if path.suffix in ENDINGS]
        found.sort(key=lambda path: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", path.name)])
    else:
        found = [Path(paths)]
    if not found:
        raise UserError(f"{paths} has no files of activations ({', '.join(ENDINGS)})")
    return found


def _tensor(path: Path, name: str | None) -> np.ndarray:
    """One tensor of a file. A `.npy` file is memory-mapped."""
    if path.suffix == ".npy":
        if name is not None:
            raise UserError(f"{path} holds one array without a name, so name={name!r} says nothing")
        return map_npy(path)
    if path.suffix == ".safetensors":
        with open_tensors(path) as file:
            chosen = _chosen(path, list(file.keys()), name)
            return _of_safetensors(path, file, chosen)
    tensors = _named_tensors(path)
    found = tensors[_chosen(path, [one for one, value in tensors.items() if isinstance(value, np.ndarray)], name)]
    return np.asarray(found)


def _of_safetensors(path: Path, file: Any, name: str) -> np.ndarray:
    try:
        return file.get_tensor(name)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {name!r} has a dtype that cannot be read here: {error}") from error


def _named_tensors(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}")
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in (".pt", ".pth"):
        from jax_interp.core.torch_files import read_torch_value

        value = read_torch_value(path)
        return value if isinstance(value, dict) else {"": value}
    raise UserError(f"{path} is not one of the files that are read: {', '.join(ENDINGS)}")


def _chosen(path: Path, names: Sequence[str], name: str | None) -> str:
    if name in names:
        return str(name)
    if name is None and len(names) == 1:
        return names[0]
    has = ", ".join(repr(one) for one in names[:8]) or "no tensors"
    raise UserError(f"{path} has {has}: {'give the name of one' if name is None else f'there is no {name!r}'}")


def _arrow_files(directory: Path) -> list[Path]:
    state = read_json(directory / "state.json")
    if state.get("_indices_files"):
        raise UserError(f"{directory} is a selection of rows of another dataset: save it after flatten_indices()")
    listed = state.get("_data_files")
    found = [one.get("filename") if isinstance(one, dict) else None for one in listed] if listed else []
    names = [one for one in found if isinstance(one, str) and Path(one).name == one]  # none leads out of the folder
    if not names or len(names) < len(found):
        raise UserError(f"{directory / 'state.json'} names no data files of a dataset")
    for one in names:
        if not (directory / one).is_file():
            raise UserError(f"{directory} lacks {one}, which its state.json names")
    return [directory / one for one in names]


def _column(directory: Path, column: str | None) -> tuple[str, tuple[int, ...]]:
    """The column with activations and the shape of its values, from `dataset_info.json`."""
    features = read_json(directory / "dataset_info.json").get("features")
    features = features if isinstance(features, dict) else {}
    arrays = {one: about for one, about in features.items() if isinstance(about, dict) and "shape" in about}
    if column is None and len(arrays) == 1:
        column = next(iter(arrays))
    if column is None or column not in arrays:
        asked = "give column=" if column is None else f"there is no {column!r}"
        raise UserError(
            f"{directory} has the columns of arrays {', '.join(map(repr, arrays)) or 'none'} among "
            f"{', '.join(map(repr, features))}: {asked}"
        )
    shape = arrays[column]["shape"]
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
        raise UserError(f"{directory}: {column!r} has values of shape {json.dumps(shape)}; activations are [pos, d]")
    return column, tuple(shape)


def _batches(path: Path, column: str) -> Iterator[Any]:
    """The column in each record batch of an Arrow stream, memory-mapped."""
    try:
        import pyarrow  # type: ignore[import-not-found]  an optional extra
    except ImportError as error:
        raise UserError(f"{str(path)!r} needs pyarrow: pip install 'jax_interp[parquet]'") from error
    try:
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            if column not in stream.schema.names:
                raise UserError(f"{path} has no column {column!r}; it has {', '.join(stream.schema.names)}")
            for batch in stream:
                yield batch.column(column)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a whole Arrow stream: {error}") from error


def _values(part: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """The values [seq, pos, d] of nested lists. Raises UserError for nulls and ragged lists."""
    flat = part.storage if hasattr(part, "storage") else part
    rows = len(flat)
    for n in shape:
        if flat.null_count:
            raise UserError(f"{what} has null values")
        if not hasattr(flat, "flatten") or not hasattr(flat.type, "value_type"):
            raise UserError(f"{what} is {part.type}, not lists of lists of numbers")
        lengths = np.diff(np.asarray(flat.offsets)) if hasattr(flat, "offsets") else np.full(len(flat), n)
        if (lengths != n).any():
            raise UserError(f"{what} has a list of {lengths[lengths != n][0]} where its dataset says {n}")
        flat = flat.flatten()
    if flat.null_count:
        raise UserError(f"{what} has null values")
    return flat.to_numpy(zero_copy_only=False).reshape(rows, *shape)
