"""Toy models and worlds with known answers: made by hand, or trained in the process from a seed.

One file a toy. Each model is a callable pytree that keeps the contract of `jax_interp.surgery`, and each file registers
what it defines in `TOYS`. docs/toys.md shows them all.
"""

from jax_interp.core.registry import discover
from jax_interp.toys.toy import TOYS, HasKnownFeatures, KnownFeatures, Toy, find_toy, known_features, target_forms

discover(__name__, __path__)

__all__ = ["TOYS", "HasKnownFeatures", "KnownFeatures", "Toy", "find_toy", "known_features", "target_forms"]
