"""Models: one configurable decoder, with loading, saving, weight processing and generation."""

from jax_interp.core.rotary import Rope, RopeScaling
from jax_interp.models.cache import Cache
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder, init
from jax_interp.models.generation.completion import Completion, complete, stream_text
from jax_interp.models.generation.generate import generate, pad_left, stream
from jax_interp.models.generation.sampling import Greedy, Sample
from jax_interp.models.hf import load, load_shapes, save

__all__ = [
    "Cache",
    "Completion",
    "Config",
    "Decoder",
    "Greedy",
    "Rope",
    "RopeScaling",
    "Sample",
    "complete",
    "generate",
    "init",
    "load",
    "load_shapes",
    "pad_left",
    "save",
    "stream",
    "stream_text",
]
