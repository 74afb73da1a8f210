"""Measuring steering: propensity over strengths, slopes per question, nuisance factors, transfer, side effects."""

from jax_interp.steering.measuring.propensity import STRENGTHS, Propensities, propensities
from jax_interp.steering.measuring.spread import Spread, spread
from jax_interp.steering.measuring.steerability import Steerability, eta_squared, rank_correlation, slopes, steerability
from jax_interp.steering.measuring.steered_rows import Batching

__all__ = [
    "STRENGTHS", "Batching", "Propensities", "Spread", "Steerability", "eta_squared", "propensities",
    "rank_correlation", "slopes", "spread", "steerability",
]  # fmt: skip
