"""What steering is trained for. Each objective has one file and is registered in `OBJECTIVES`."""

from jax_interp.core.registry import discover
from jax_interp.steering.trained.objectives.bipo import BiPO
from jax_interp.steering.trained.objectives.language_modelling import LanguageModelling
from jax_interp.steering.trained.objectives.objective import OBJECTIVES, Batch, Objective
from jax_interp.steering.trained.objectives.reps import RePS

discover(__name__, __path__)

__all__ = ["OBJECTIVES", "Batch", "BiPO", "LanguageModelling", "Objective", "RePS"]
