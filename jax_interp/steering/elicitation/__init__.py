"""Vectors found without labels: what a model can be made to do (MELBO, deep causal transcoding)."""

from jax_interp.steering.elicitation.calibration import calibrated_radius
from jax_interp.steering.elicitation.dct import DctConfig, dct
from jax_interp.steering.elicitation.effects import Between, Prompts, between_on
from jax_interp.steering.elicitation.elicited import Elicited
from jax_interp.steering.elicitation.factors import Factors
from jax_interp.steering.elicitation.melbo import MelboConfig, melbo

__all__ = [
    "Between",
    "DctConfig",
    "Elicited",
    "Factors",
    "MelboConfig",
    "Prompts",
    "between_on",
    "calibrated_radius",
    "dct",
    "melbo",
]
