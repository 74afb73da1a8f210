"""Steering vectors on disk: safetensors files of this project, and GGUF control vectors of llama.cpp and repeng.

    save_vectors("calm.safetensors", vector, model="gpt2", method="caa")
    save_vectors("calm.gguf", vector, model="gpt2")
    saved = load_vectors("calm.gguf")                        saved.vector, saved.model, saved.method

A safetensors file keeps the dtype of each vector and takes every address. A GGUF file has float32 vectors at
`resid_post` only. Its tensor `direction.3` is `blocks.3.resid_post`: llama.cpp and repeng add it to the output of
block 3, where the first block is block 0. llama.cpp refuses a file that has `direction.0`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jax_interp.core.errors import UserError
from jax_interp.core.gguf_files import MAGIC, read_gguf, write_gguf
from jax_interp.core.json_files import parse_json
from jax_interp.core.tensor_files import FLOATS, read_tensors, write_tensors
from jax_interp.steering.vector import SteeringVector
from jax_interp.surgery.address import Address, AddressError

_FORMAT = 1
_ARCHITECTURE = "controlvector"


@dataclasses.dataclass(frozen=True)
class SavedVectors:
    """The content of a file of steering vectors."""

    vector: SteeringVector
    model: str
    """The name of the model, for people and for checks by the caller. It is never used as a path."""
    method: str
    """How the vectors were found."""


def save_vectors(
    path: str | os.PathLike, vector: SteeringVector, *, model: str = "", method: str = "", layer_0: bool = False
) -> Path:
    """Write a steering vector to one file. The file appears whole or not at all.

    Args:
      path: a file that ends with .safetensors or .gguf, which says the format.
      vector: the vectors.
      model: the name of the model. In a GGUF file it is `controlvector.model_hint`; other programs write the model
        type of the config there, such as "llama".
      method: how the vectors were found.
      layer_0: write `direction.0` to a GGUF file too. repeng reads such a file, and llama.cpp refuses it.

    Returns:
      The path of the file.

    Raises:
      UserError: the name of the file says no format, a vector is not finite, or the format does not take an address.
    """
    path = Path(path)
    arrays = _addressed({address: np.asarray(v) for address, v in vector.vectors.items()}, path)
    if path.suffix == ".gguf":
        names = {_direction(address, layer_0): array for address, array in arrays.items()}
        about: dict[str, Any] = {"general.architecture": _ARCHITECTURE, f"{_ARCHITECTURE}.model_hint": model}
        about[f"{_ARCHITECTURE}.layer_count"] = len(names)
        if method:
            about[f"{_ARCHITECTURE}.method"] = method
        return write_gguf(path, about, names)
    if path.suffix == ".safetensors":
        about = {"format": _FORMAT, "model": model, "method": method}
        return write_tensors(path, arrays, {"steering": json.dumps(about)})
    raise UserError(f"{path} must end with .safetensors or .gguf: the end says the format")


def load_vectors(path: str | os.PathLike) -> SavedVectors:
    """Read a steering vector from a file of `save_vectors`, or a GGUF control vector of another program.

    The content of the file says which format it is.

    Raises:
      UserError: the file is missing, damaged, or has something else than finite vectors at addresses.
    """
    path = Path(path)
    if not path.is_file():  # opening a pipe would wait
        raise UserError(f"there is no file {str(path)!r}")
    try:
        with open(path, "rb") as file:
            begin = file.read(len(MAGIC))
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    found, model, method = _from_gguf(path) if begin == MAGIC else _from_safetensors(path)
    arrays = _addressed(found, path)
    return SavedVectors(SteeringVector({name: jnp.asarray(array) for name, array in arrays.items()}), model, method)


def _from_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str, str]:
    file = read_tensors(path)
    about = parse_json(file.header.get("steering", "{}"), f"the header of {path}")
    found = about.get("format") if isinstance(about, dict) else None
    if type(found) is not int or found != _FORMAT:
        raise UserError(f"{path} has no steering vectors of format {_FORMAT}: its header says {found!r}")
    model, method = about.get("model"), about.get("method")
    if not (isinstance(model, str) and isinstance(method, str)):
        raise UserError(f"{path}: model and method must be strings, got {[model, method]}")
    return file.arrays, model, method


def _from_gguf(path: Path) -> tuple[dict[str, np.ndarray], str, str]:
    def check(metadata: dict[str, Any]) -> None:
        found = metadata.get("general.architecture")
        if found != _ARCHITECTURE:
            raise UserError(f"{path} is no control vector: its general.architecture is {found!r}")

    file = read_gguf(path, check)
    names = [file.metadata.get(f"{_ARCHITECTURE}.{name}", "") for name in ("model_hint", "method")]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: model_hint and method must be strings, got {names}")
    arrays = {}
    for name, array in file.arrays.items():
        parts = re.fullmatch(r"direction\.(0|[1-9][0-9]{0,5})", name)
        if parts is None:
            raise UserError(f"{path}: the tensor {name!r} is no direction.LAYER")
        arrays[f"blocks.{parts[1]}.resid_post"] = array
    if len({array.shape for array in arrays.values()}) > 1:
        raise UserError(f"{path}: its directions have several shapes")
    return arrays, *names


def _addressed(found: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """The vectors by the address of one value each, in the order of the file. Raises `UserError` for anything else."""
    if not found:
        raise UserError(f"{path} has no vectors")
    arrays: dict[str, np.ndarray] = {}
    for name, array in found.items():
        try:
            address = Address.parse(name)
        except AddressError as error:
            raise UserError(f"{path}: {name[:60]!r} is no address: {error}") from error
        if not address.is_single or str(address) in arrays:
            raise UserError(
                f"{path}: {name[:60]!r} comes twice, or is not the address of one value, blocks.2.resid_post"
            )
        if str(array.dtype) not in FLOATS or array.ndim != 1 or not array.size:
            raise UserError(f"{path}: the vector at {name!r} is {array.dtype}{list(array.shape)}, not a list of floats")
        if not np.isfinite(array.astype(np.float64)).all():
            raise UserError(f"{path}: the vector at {name!r} has entries that are NaN or infinite")
        arrays[str(address)] = array
    return arrays


def _direction(address: str, layer_0: bool) -> str:
    parts = re.fullmatch(r"blocks\.([0-9]+)\.resid_post", address)
    if parts is None:
        raise UserError(f"a GGUF control vector has vectors at 'blocks.LAYER.resid_post' only, not at {address!r}")
    if int(parts[1]) == 0 and not layer_0:
        raise UserError(
            "llama.cpp refuses a control vector at block 0: leave it out with vector.only([...]), or give layer_0=True "
            "for a program that reads it"
        )
    return f"direction.{parts[1]}"
