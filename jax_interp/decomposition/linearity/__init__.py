"""Tests of weight linearity: the assumption that weights are a sum of parts, and that each input needs few parts.

    report = weight_linearity(f, WeightParts(theta, parts), importance, data, oracle=...)     # any f(theta, x)
    report = decomposition_linearity(model, importance, data)                                 # of `decompose`
    print(report)

There are two claims (StefanHex 2025). *Mechanistic faithfulness*: for every pattern of ablations there are weights that
give the right behaviour. `composite_grid` tests this claim for any function from masks to behaviour. *Weight
linearity*: these weights are also sums of the parts. All other tests here are about this stronger claim. Reconstruction
errors alone prove neither claim: an SVD whose parts all count as always needed has zero error.

masked_function.py   functions that can be run with any of their parts masked
measure.py           measures one decomposition
report.py            the report with all results
grid.py              composite inputs of known features
oracle.py            for toys, the decomposition that is known to be right
"""

from jax_interp.decomposition.linearity.grid import Grid, GridSettings, composite_grid
from jax_interp.decomposition.linearity.masked_function import (
    DecompositionForward,
    MaskedForward,
    MaskedFunction,
    WeightParts,
    importance_matrix,
    mask_decomposition,
    mask_weights,
)
from jax_interp.decomposition.linearity.measure import (
    LinearitySettings,
    decomposition_linearity,
    linearity,
    weight_linearity,
)
from jax_interp.decomposition.linearity.oracle import oracle_decomposition, oracle_importance
from jax_interp.decomposition.linearity.report import Figure, LinearityReport

__all__ = [
    "DecompositionForward", "Figure", "Grid", "GridSettings", "LinearityReport", "LinearitySettings", "MaskedForward",
    "MaskedFunction", "WeightParts", "composite_grid", "decomposition_linearity", "importance_matrix",
    "linearity", "mask_decomposition", "mask_weights", "oracle_decomposition", "oracle_importance", "weight_linearity",
]  # fmt: skip
