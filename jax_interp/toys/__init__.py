"""Toy models and synthetic worlds with known answers. They are made by hand, or trained from a seed.

Each toy is one file, which registers the toy in `TOYS`. Its model is a callable pytree that keeps the contract of
`jax_interp.surgery`. docs/toys.md describes all toys.
"""

from jax_interp.core.registry import discover
from jax_interp.toys.toy import TOYS, HasKnownFeatures, KnownFeatures, Toy, find_toy, known_features, target_forms

discover(__name__, __path__)

__all__ = ["TOYS", "HasKnownFeatures", "KnownFeatures", "Toy", "find_toy", "known_features", "target_forms"]
