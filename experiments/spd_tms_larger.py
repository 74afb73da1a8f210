"""SPD takes larger toy models apart as well, and those with an identity matrix inserted.

As `spd_tms` (Bushnaq, Braun & Sharkey 2025, arXiv 2506.20790), on more targets: forty features in ten dimensions; an m
x m identity matrix between W and its transpose, which is found as m components that all features use; both at once; and
TMS 5-2 with the configuration of 2025 (no Δ, no warm-up on faithfulness, both sigmoids leaky in the forward pass).
Batches are smaller than the published 4096.
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
