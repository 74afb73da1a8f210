"""Circuits: which parts of a model carry a behaviour."""

from jax_interp.circuits.patching import LogitDifference, patch_grid

__all__ = ["LogitDifference", "patch_grid"]
