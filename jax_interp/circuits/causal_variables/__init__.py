"""Causal variables: does a network compute the variables of a causal model, and where?

    pairs = counterfactual_pairs(causal_model, "left", 1000, changed=0.5)
    data = interchange_data(pairs, encode, {True: yes, False: no}, positions={"x": 1, "last": -1})
    interchange_accuracy(model, data, Location("blocks.1.resid_post", "x"), Whole()).accuracy
    controlled_alignment(model, train, test, Location("blocks.1.resid_post", "x"), AlignmentConfig(DAS(1)))

causal_model.py       variables, parents, functions; settings, interventions, interchanges
counterfactuals.py    pairs of base and sources, with the answer after the interchange
interchange_data.py   the pairs as inputs of a network
features.py           which part of a value is exchanged
interchange.py        a run with values of other runs
accuracy.py           how often the network answers as the causal model says
methods.py            DAS, boundless DAS, masks
align.py              learn the features of a variable
controls.py           what the same procedure reaches where there is nothing to find
ravel_alignment.py    DAS and MDAS on RAVEL's pairs
sweep.py              DAS over layers, positions, dimensions and seeds as one program
"""

from jax_interp.circuits.causal_variables.accuracy import Estimate, InterchangeResult, interchange_accuracy
from jax_interp.circuits.causal_variables.align import Alignment, AlignmentConfig, align
from jax_interp.circuits.causal_variables.causal_model import CausalModel, Numbers, Variable
from jax_interp.circuits.causal_variables.controls import controlled_alignment, permuted_weights, random_like
from jax_interp.circuits.causal_variables.counterfactuals import Counterfactuals, counterfactual_pairs
from jax_interp.circuits.causal_variables.features import (
    Coordinates,
    Features,
    Latents,
    Subspace,
    Whole,
    cosines,
    span,
)
from jax_interp.circuits.causal_variables.interchange import Location, interchange
from jax_interp.circuits.causal_variables.interchange_data import InterchangeData, interchange_data
from jax_interp.circuits.causal_variables.methods import DAS, BoundlessDAS, LearnedMask, Method
from jax_interp.circuits.causal_variables.ravel_alignment import (
    RavelAlignment,
    RavelAlignmentResult,
    align_ravel,
    ravel_data,
)
from jax_interp.circuits.causal_variables.sweep import SweepOver, alignment_sweep

__all__ = [
    "DAS",
    "Alignment",
    "AlignmentConfig",
    "BoundlessDAS",
    "CausalModel",
    "Coordinates",
    "Counterfactuals",
    "Estimate",
    "Features",
    "InterchangeData",
    "InterchangeResult",
    "Latents",
    "LearnedMask",
    "Location",
    "Method",
    "Numbers",
    "RavelAlignment",
    "RavelAlignmentResult",
    "Subspace",
    "SweepOver",
    "Variable",
    "Whole",
    "align",
    "align_ravel",
    "alignment_sweep",
    "controlled_alignment",
    "cosines",
    "counterfactual_pairs",
    "interchange",
    "interchange_accuracy",
    "interchange_data",
    "permuted_weights",
    "random_like",
    "ravel_data",
    "span",
]
