"""The base class of published formats: layouts in which other programs store dictionaries.

A new format is one file in this folder that registers itself:

    @FORMATS.register
    class MyFormat(Format):
        name = "my-format"

        @classmethod
        def recognise(cls, files): return "my_weights.safetensors" in files

        @classmethod
        def read(cls, files): ...

A reader takes the pre-bias, the units of thresholds and the orientation of each matrix from the format, never from a
default. What it does not know (a tensor, a setting, a mode), it refuses by name. Constant factors, shifts and norms are
folded into the weights, so that every dictionary reads and writes raw activations (`folding.py`).
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import ClassVar

from jax_interp.core.errors import UserError
from jax_interp.core.registry import Registry
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.storage import Saved


class Format(abc.ABC):
    """Base class of published formats. It has class methods only; there are no objects."""

    name: ClassVar[str]
    """The name in `load_dictionary(..., format=)`, `save_dictionary(..., format=)` and the table of the docs."""
    title: ClassVar[str]
    """A few words for tables and messages: "SAELens", "Gemma Scope 1"."""
    repositories: ClassVar[tuple[str, ...]] = ()
    """Patterns of repositories on the hub that use the format, such as "google/gemma-scope-2b-pt-res"."""
    hub_files: ClassVar[tuple[str, ...]] = ("{path}/*",)
    """Patterns of the files of one dictionary in a repository, where {path} is its folder or its file, {folder} the
    folder that this file is in, and {stem} the path without the ending. `*` does not match "/"."""
    keeps_dtype: ClassVar[bool] = False
    """Whether 16-bit weights stay as they are. Other formats are of programs that compute in float32."""
    writes: ClassVar[bool] = False
    """Whether `write` is defined."""

    @classmethod
    @abc.abstractmethod
    def recognise(cls, files: Files) -> bool:
        """Whether the files have this format. It looks at names, at JSON or YAML, and at names and shapes of tensors.
        No two formats may recognise the same files."""

    @classmethod
    @abc.abstractmethod
    def read(cls, files: Files) -> Saved:
        """Read the dictionary. Raises UserError if a part is missing, unknown, or cannot be represented."""

    @classmethod
    def write(cls, saved: Saved, directory: Path) -> Path:
        """Write a dictionary so that the other program loads it. Raises UserError if the format cannot hold it."""
        raise UserError(f"{cls.title} files cannot be written here, only read")


FORMATS = Registry("format", Format)
