"""Tests of weight linearity: the assumption that weights are a sum of parts, of which each input needs few.

    report = weight_linearity(f, WeightParts(theta, parts), importance, data, oracle=...)     # any f(theta, x)
    report = decomposition_linearity(model, importance, data)                                 # of `decompose`
    print(report)

There are two strengths (StefanHex 2025). *Mechanistic faithfulness*: for every pattern of ablations there are weights
that behave right; `composite_grid` tests it for any function from masks to behaviour. *Weight linearity*: those weights
also add up; everything else here tests it. Reconstruction errors alone certify neither: an SVD whose parts are declared
always needed scores zero on all of them.

masked_function.py   a function that can be run with any of its parts masked
measure.py           all figures of one decomposition
report.py            the report that holds them
grid.py              composite inputs of known features
oracle.py            the known right decomposition of toys
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
