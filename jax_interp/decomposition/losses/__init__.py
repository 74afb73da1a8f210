"""Losses: each a frozen dataclass with its coefficient and options, called on a `Scene`; the functions beside them are
the formulas alone.

faithfulness.py     components add up to the target's weights
minimality.py       few components are important
reconstruction.py   the masked model does what the target does: stochastic, layerwise, subset, unmasked, CI-masked
hidden.py           ... at every decomposed matrix's output
adversarial.py      ... for the worst masks: projected gradient ascent, fresh or persistent; merged
adversary.py        who looks for those
"""

from jax_interp.decomposition.losses.adversarial import Merged, PersistentPGD, PGDReconstruction
from jax_interp.decomposition.losses.adversary import Adversary
from jax_interp.decomposition.losses.faithfulness import Faithfulness
from jax_interp.decomposition.losses.hidden import HiddenReconstruction
from jax_interp.decomposition.losses.minimality import ImportanceMinimality, SmoothL0
from jax_interp.decomposition.losses.reconstruction import (
    ImportanceMasked,
    StochasticLayerwise,
    StochasticReconstruction,
    StochasticSubset,
    Unmasked,
)
from jax_interp.decomposition.losses.scene import Scene

Loss = (
    Faithfulness
    | ImportanceMinimality
    | SmoothL0
    | StochasticReconstruction
    | StochasticLayerwise
    | StochasticSubset
    | Unmasked
    | ImportanceMasked
    | HiddenReconstruction
    | PGDReconstruction
    | PersistentPGD
    | Merged
)

__all__ = [
    "Adversary", "Faithfulness", "HiddenReconstruction", "ImportanceMasked", "ImportanceMinimality", "Loss", "Merged",
    "PGDReconstruction", "PersistentPGD", "Scene", "SmoothL0", "StochasticLayerwise", "StochasticReconstruction",
    "StochasticSubset", "Unmasked",
]  # fmt: skip
