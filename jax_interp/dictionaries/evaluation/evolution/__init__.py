"""How features change across layers and through training: which persist, appear and disappear, and how they drift.

    evolution = evolve_directions([load(step).W_dec for step in steps])      checkpoints: one space of directions
    evolution = evolve_activations(saes, rows_by_layer)                      layers: by correlation on the same tokens
    evolution.passed, evolution.steps[3].deaths, evolution.lineages

co_activation.py   how the latents of two dictionaries fire together on the same tokens (Balcells et al. 2024)
evolution.py       features matched from one member of a sequence to the next: births, deaths, lineages, drift
"""

from jax_interp.dictionaries.evaluation.evolution.co_activation import CoActivation, co_activation, relative_bound
from jax_interp.dictionaries.evaluation.evolution.evolution import (
    Evolution,
    Lineage,
    Transition,
    evolve,
    evolve_activations,
    evolve_directions,
    match_scores,
)

__all__ = [
    "CoActivation",
    "Evolution",
    "Lineage",
    "Transition",
    "co_activation",
    "evolve",
    "evolve_activations",
    "evolve_directions",
    "match_scores",
    "relative_bound",
]
