"""Published formats of dictionaries, one file each. `load_dictionary` reads them (dictionaries/loading.py)."""

from jax_interp.core.registry import discover
from jax_interp.dictionaries.formats.files import Files
from jax_interp.dictionaries.formats.format import FORMATS, Format

__all__ = ["FORMATS", "Files", "Format"]

discover(__name__, __path__)
