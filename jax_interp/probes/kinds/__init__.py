"""The kinds of probes, one file each."""

from jax_interp.core.registry import discover

discover(__name__, __path__)
