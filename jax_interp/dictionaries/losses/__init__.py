"""Loss terms. The loss of a dictionary is the sum of the terms in its config."""

from jax_interp.core.registry import discover
from jax_interp.dictionaries.losses.aux_k import AuxK
from jax_interp.dictionaries.losses.forward import Forward
from jax_interp.dictionaries.losses.gated import FrozenDecoder, GateL1
from jax_interp.dictionaries.losses.ghost import GhostGradients
from jax_interp.dictionaries.losses.reconstruction import Matryoshka, MultiTopK, OverNorm, Reconstruction
from jax_interp.dictionaries.losses.sparsity import L1, AnnealedLp
from jax_interp.dictionaries.losses.term import TERMS, Term, total
from jax_interp.dictionaries.losses.thresholds import L0, PreActivation, Tanh, TargetL0

discover(__name__, __path__)

__all__ = [
    "L0",
    "L1",
    "TERMS",
    "AnnealedLp",
    "AuxK",
    "Forward",
    "FrozenDecoder",
    "GateL1",
    "GhostGradients",
    "Matryoshka",
    "MultiTopK",
    "OverNorm",
    "PreActivation",
    "Reconstruction",
    "Tanh",
    "TargetL0",
    "Term",
    "total",
]
