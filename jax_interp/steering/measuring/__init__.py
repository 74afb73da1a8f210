"""Measuring steering: propensity over strengths, slopes per question, nuisance factors, transfer, side effects."""

from jax_interp.steering.measuring.capability import Capability, capability
from jax_interp.steering.measuring.coherence import Coherence, Continuing, coherence, repetition
from jax_interp.steering.measuring.propensity import STRENGTHS, Propensities, propensities
from jax_interp.steering.measuring.report import SideMeasures, SteeringReport, measure
from jax_interp.steering.measuring.side_effects import SideEffects, Size, side_effects
from jax_interp.steering.measuring.spread import Spread, spread
from jax_interp.steering.measuring.steerability import Steerability, eta_squared, rank_correlation, slopes, steerability
from jax_interp.steering.measuring.steered_rows import Batching
from jax_interp.steering.measuring.transfer import Cell, Transfer, transfer
from jax_interp.steering.measuring.unsteered import UNSTEERED

__all__ = [
    "STRENGTHS", "UNSTEERED", "Batching", "Capability", "Cell", "Coherence", "Continuing", "Propensities",
    "SideEffects", "SideMeasures", "Size", "Spread", "Steerability", "SteeringReport", "Transfer", "capability",
    "coherence", "eta_squared", "measure", "propensities", "rank_correlation", "repetition", "side_effects", "slopes",
    "spread", "steerability", "transfer",
]  # fmt: skip
