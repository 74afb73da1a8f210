"""Loss terms. Each term is a frozen dataclass with a coefficient and options, and is called with `LossInputs`.

faithfulness.py     components add up to the target's weights
minimality.py       few components are important
reconstruction.py   the masked model has the target's outputs: stochastic, layerwise, subset, unmasked, masked by
                    importances, and at the output of every decomposed matrix
adversarial.py      the same under the worst masks: projected gradient ascent, fresh, persistent, or mixed
adversaries.py      the adversaries that find the worst masks
base.py             the base class, its registry, and the inputs of all terms

Every file of this folder registers its terms in `LOSSES`. Configs accept a term from your own file as soon as that file
is imported.
"""

from jax_interp.core.registry import discover
from jax_interp.decomposition.losses.adversarial import MixedReconstruction, PersistentPGD, PGDReconstruction
from jax_interp.decomposition.losses.adversaries import ADVERSARIES, AdamAdversary, Adversary
from jax_interp.decomposition.losses.base import LOSSES, Loss, LossInputs, LossSettings
from jax_interp.decomposition.losses.faithfulness import Faithfulness
from jax_interp.decomposition.losses.minimality import ImportanceMinimality, SmoothL0
from jax_interp.decomposition.losses.reconstruction import (
    HiddenReconstruction,
    ImportanceMasked,
    StochasticLayerwise,
    StochasticReconstruction,
    StochasticSubset,
    Unmasked,
)

discover(__name__, __path__)

__all__ = [
    "ADVERSARIES", "LOSSES", "AdamAdversary", "Adversary", "Faithfulness", "HiddenReconstruction", "ImportanceMasked",
    "ImportanceMinimality", "Loss", "LossInputs", "LossSettings", "MixedReconstruction", "PGDReconstruction",
    "PersistentPGD", "SmoothL0", "StochasticLayerwise", "StochasticReconstruction", "StochasticSubset", "Unmasked",
]  # fmt: skip
