"""The methods that find directions. Each file registers its own."""

from jax_interp.core.registry import discover

discover(__name__, __path__)
