"""Toy models with known answers: targets to decompose, trained in the process from a seed, or made by hand.

One file a toy. Each is a callable pytree that keeps the contract of `jax_interp.surgery`; docs/toys.md shows them all.
"""
