"""Steering: vectors found, trained, applied to each request, and measured."""

from jax_interp.steering.operators import OPERATORS
from jax_interp.steering.questions import Questions
from jax_interp.steering.steer import Steer
from jax_interp.steering.vector import AppliedVector, Steering, SteeringVector

__all__ = ["OPERATORS", "AppliedVector", "Questions", "Steer", "Steering", "SteeringVector"]
