"""The files of a published dictionary: names, JSON, YAML and tensors, read only when they are asked for.

    files = Files.at("sae/layer_5")              a folder, or one file in it
    "cfg.json" in files, files.names()
    files.json("cfg.json")["d_in"], files.yaml("config.yaml")
    tensors = files.tensors("sae_weights.safetensors")        name -> array, memory-mapped where the format allows it
    W_enc = files.place("W_enc", tensors["encoder.weight"].T)

`place` converts a view of stored numbers to an array of the role that it has in a dictionary. It is the one place where
numbers are copied to devices: each device of a mesh gets only its part, and the transposed view is never copied whole.

Files of other people are not trusted. JSON is strict, YAML is safe-loaded, `.npz` files are read without pickles, and
torch files by a reader that knows tensors only (`core.torch_files`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jax_interp.core.errors import UserError
from jax_interp.core.json_files import read_json

PlaceArray = Callable[[str, np.ndarray], Array]
"""`place(role, view)`: the stored numbers as an array. The role is the name in the dictionary: "W_enc", "b_dec", or
"sources.3.W_dec" for a cross-layer dictionary."""


def on_one_device(role: str, view: np.ndarray) -> Array:
    """The stored numbers on the default device, in their own dtype."""
    return jnp.asarray(np.ascontiguousarray(view))


@dataclasses.dataclass(frozen=True)
class Files:
    """A folder with a published dictionary.

    Args:
      directory: the folder.
      selected: the name of the file in it that the user asked for. None: the user gave the folder.
      location: where the files come from: a path below a repository such as
        "google/gemma-scope-2-1b-pt/resid_post/layer_5_width_16k_l0_small", or the path on this disk. Formats without a
        config file take layer, site and width from it.
      place: converts stored numbers to arrays.
      settings: what a release says about the files beside them, by the names that a config file has. They replace the
        entries of the config file. `norm_scaling_factor` is the constant of SAELens's `expected_average_only_in`.
    """

    directory: Path
    selected: str | None = None
    location: str = ""
    place: PlaceArray = on_one_device
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def at(cls, path: Path | str, location: str | None = None, place: PlaceArray = on_one_device) -> Files:
        """The files at a path. Raises UserError if there are none."""
        path = Path(path).expanduser()
        where = path.absolute().as_posix() if location is None else location
        if path.is_dir():
            return cls(path, None, where, place)
        if path.is_file():
            return cls(path.parent, path.name, where, place)
        raise UserError(f"there is no file or folder {str(path)!r}")

    def names(self) -> tuple[str, ...]:
        """The names of the files, sorted. If the user asked for one file, only this one."""
        if self.selected is not None:
            return (self.selected,)
        return tuple(sorted(path.name for path in self.directory.iterdir() if path.is_file()))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (self.directory / name).is_file()

    def path(self, name: str) -> Path:
        """The path of a file. Raises UserError if it is missing, or if the name leaves the folder."""
        if Path(name).name != name:
            raise UserError(f"{name!r} is not the name of a file in {self.directory}")
        if name not in self:
            raise UserError(f"{self.directory} has no {name}; it has {', '.join(self.names()) or 'no files'}")
        return self.directory / name

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file that holds an object."""
        return _mapping(read_json(self.path(name)), self.path(name))

    def yaml(self, name: str) -> dict[str, Any]:
        """A YAML file that holds a mapping, safe-loaded."""
        import yaml

        path = self.path(name)
        try:
            return _mapping(yaml.safe_load(path.read_text(encoding="utf-8")), path)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())[:300]}") from error

    def tensors(self, name: str) -> Mapping[str, Any]:
        """The tensors of a `.safetensors`, `.npz` or torch file, by name. Raises UserError for other files.

        Tensors of safetensors files are memory-mapped. Torch files may also hold numbers, strings and dictionaries.
        """
        from jax_interp.dictionaries.formats.stored_tensors import read_stored

        return read_stored(self.path(name))


def _mapping(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not names with values")
    return content
