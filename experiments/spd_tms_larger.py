"""SPD also decomposes larger toy models, and toy models with an inserted identity matrix.

This is `spd_tms` (Bushnaq, Braun & Sharkey 2025, arXiv 2506.20790) with more targets. One has forty features in ten
dimensions. One has an m x m identity matrix between W and its transpose; SPD finds it as m components that all features
use. One has both. The last is TMS 5-2 with the 2025 configuration (no Δ, no warm-up on faithfulness, both sigmoids
leaky in the forward pass). Batches are smaller than the published 4096.
"""

from __future__ import annotations

import dataclasses

from experiments.experiment import Results
from experiments.spd_tms import figure, run_decompositions


@dataclasses.dataclass(frozen=True)
class Config:
    presets: tuple[str, ...] = ("tms_40_10", "tms_5_2_id", "tms_40_10_id", "tms_5_2_v1")
    """Keys of `spd_tms.DECOMPOSITIONS`."""
    steps: int | None = None


QUICK = Config(("tms_5_2_id",), steps=1500)


def run(config: Config) -> Results:
    rows, data = run_decompositions(config.presets, config.steps)
    return Results(tuple(rows), data)


__all__ = ["QUICK", "Config", "figure", "run"]
