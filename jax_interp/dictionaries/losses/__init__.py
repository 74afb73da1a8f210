"""What a dictionary is trained for: terms that are added up. Each names its reductions and its source."""

from jax_interp.dictionaries.losses.aux_k import AuxK
from jax_interp.dictionaries.losses.forward import Forward, total
from jax_interp.dictionaries.losses.gated import FrozenDecoder, GateL1
from jax_interp.dictionaries.losses.ghost import GhostGradients
from jax_interp.dictionaries.losses.reconstruction import Matryoshka, MultiTopK, Reconstruction
from jax_interp.dictionaries.losses.sparsity import L1, AnnealedLp
from jax_interp.dictionaries.losses.thresholds import L0, PreActivation, Tanh, TargetL0

Term = (
    Reconstruction
    | Matryoshka
    | MultiTopK
    | L1
    | AnnealedLp
    | L0
    | TargetL0
    | Tanh
    | PreActivation
    | GateL1
    | FrozenDecoder
    | GhostGradients
    | AuxK
)

__all__ = [
    "L0",
    "L1",
    "AnnealedLp",
    "AuxK",
    "Forward",
    "FrozenDecoder",
    "GateL1",
    "GhostGradients",
    "Matryoshka",
    "MultiTopK",
    "PreActivation",
    "Reconstruction",
    "Tanh",
    "TargetL0",
    "Term",
    "total",
]
