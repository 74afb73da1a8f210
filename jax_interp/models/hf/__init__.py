"""Models in Hugging Face's layout: `load` reads a directory or a model of the hub, `save` writes a directory that
transformers can load.

Each model family is one file of this folder. `family.py` documents the content of such a file.
"""

from jax_interp.core.registry import discover
from jax_interp.models.hf.load import load, load_shapes
from jax_interp.models.hf.save import save

discover(__name__, __path__)

__all__ = ["load", "load_shapes", "save"]
