"""Is weight linearity real? Decompositions assume that weights are a sum of parts of which each input needs few. Here
that is under test, for any decomposition.

    report = weight_linearity(f, WeightParts(theta, parts), importance, data, oracle=...)     # any f(theta, x)
    report = decomposition_linearity(model, importance, data)                                 # of `decompose`
    print(report)

Two strengths (StefanHex 2025): *mechanistic faithfulness* asks that for every pattern of ablations there are weights
that behave right (`composite_grid`, of any function from masks to behaviour), *weight linearity* also that those
weights add up (everything else here). Reconstruction figures alone certify neither: an SVD whose parts are declared
always needed scores zero on all of them.
"""

from jax_interp.decomposition.linearity.ablatable import (
    Ablatable,
    WeightParts,
    of_decomposition,
    of_weights,
    side_by_side,
)
from jax_interp.decomposition.linearity.grid import Grid, composite_grid
from jax_interp.decomposition.linearity.oracle import ideal, needed
from jax_interp.decomposition.linearity.report import (
    Figure,
    LinearityReport,
    decomposition_linearity,
    linearity,
    over,
    weight_linearity,
)

__all__ = [
    "Ablatable", "Figure", "Grid", "LinearityReport", "WeightParts", "composite_grid", "decomposition_linearity",
    "ideal", "linearity", "needed", "of_decomposition", "of_weights", "over", "side_by_side", "weight_linearity",
]  # fmt: skip
