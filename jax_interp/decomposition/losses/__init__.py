"""Loss terms: each a frozen dataclass with its coefficient and options, called on `LossInputs`.

faithfulness.py     components add up to the target's weights
minimality.py       few components are important
reconstruction.py   the masked model does what the target does: stochastic, layerwise, subset, unmasked, masked by
                    importances, and at every decomposed matrix's output
adversarial.py      ... under the worst masks: projected gradient ascent, fresh, persistent, or mixed
adversaries.py      the adversaries that find those masks
base.py             the base class, its registry, and the inputs of all terms

Every file of this folder registers its terms in `LOSSES`. A term in a file of your own is available to configs as soon
as that file is imported.
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
