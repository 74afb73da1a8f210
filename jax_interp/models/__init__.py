"""Models: one configurable decoder, its parts, and how it is read from disk and generates."""

from jax_interp.models.cache import Cache
from jax_interp.models.config import Config, Rope, RopeScaling
from jax_interp.models.decoder import Decoder, init

__all__ = ["Cache", "Config", "Decoder", "Rope", "RopeScaling", "init"]
