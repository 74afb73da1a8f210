"""Models in Hugging Face's layout: `load` reads a directory or hub name, `save` writes one that transformers loads."""

from jax_interp.models.hf.load import load, load_shapes
from jax_interp.models.hf.save import save

__all__ = ["load", "load_shapes", "save"]
