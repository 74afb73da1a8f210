"""Statistics for `collect`. Each is one class; what they return is in their docstrings."""

from jax_interp.dashboards.statistics.activity import Activity, KeptPositions, UnitActivity
from jax_interp.dashboards.statistics.co_firing import CoFiring
from jax_interp.dashboards.statistics.passages import Passage, Passages
from jax_interp.dashboards.statistics.pieces import InPieces
from jax_interp.dashboards.statistics.tokens import (
    InputTokens,
    OnToken,
    PredictedTokens,
    TokenContrast,
    TokenShares,
    TokenSums,
)
from jax_interp.dashboards.statistics.windows import Sample, TopWindows, UniformWindows

__all__ = [
    "Activity",
    "CoFiring",
    "InPieces",
    "InputTokens",
    "KeptPositions",
    "OnToken",
    "Passage",
    "Passages",
    "PredictedTokens",
    "Sample",
    "TokenContrast",
    "TokenShares",
    "TokenSums",
    "TopWindows",
    "UniformWindows",
    "UnitActivity",
]
