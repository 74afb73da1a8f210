"""The format of this package, see dictionaries/storage.py."""

from __future__ import annotations

from pathlib import Path

from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format
from jax_interp.dictionaries.storage import DESCRIPTION, TENSORS, Saved, read_native, write_native


@FORMATS.register
class Native(Format):
    """`dictionary.json` and `dictionary.safetensors`."""

    name = "jax_interp"
    title = "jax_interp"
    hub_files = ("{path}/dictionary.json", "{path}/dictionary.safetensors")
    keeps_dtype = True
    writes = True

    @classmethod
    def recognise(cls, files: Files) -> bool:
        return files.selected in (None, DESCRIPTION, TENSORS) and (DESCRIPTION in files or TENSORS in files)

    @classmethod
    def read(cls, files: Files) -> Saved:
        return read_native(files.directory, files.place)

    @classmethod
    def write(cls, saved: Saved, directory: Path) -> Path:
        return write_native(directory, saved)
