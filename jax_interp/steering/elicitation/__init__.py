"""Vectors found without labels: what a model can be made to do (MELBO, deep causal transcoding)."""

from jax_interp.steering.elicitation.effects import Between
from jax_interp.steering.elicitation.elicited import Elicited
from jax_interp.steering.elicitation.melbo import MelboConfig, melbo

__all__ = ["Between", "Elicited", "MelboConfig", "melbo"]
