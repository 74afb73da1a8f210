"""SPD finds a component for each feature in both layers of a deeper residual MLP, and some extra components.

This is `spd_resid_mlp` (Bushnaq, Braun & Sharkey 2025, arXiv 2506.20790) with two layers of 25 neurons and the 2026
configuration: one importance function for all components of a matrix, random subsets of matrices, and one step of an
adversary. In the publication, every layer has the pattern of the one-layer model, and results depend on the seed. Our
run has one seed and batches of 512 (published: 2048). In our run every feature has a component in `mlp_in` of both
layers, and half of the features have a second component. In `mlp_out` more components are alive than there are neurons,
and no feature uses all of them. `--presets resid_mlp3` has three layers, and takes several hours.
"""

from __future__ import annotations

import dataclasses

from experiments import spd_resid_mlp
from experiments.experiment import Results
from experiments.spd_resid_mlp import figure


@dataclasses.dataclass(frozen=True)
class Config(spd_resid_mlp.Config):
    presets: tuple[str, ...] = ("resid_mlp2",)
    seeds: tuple[int, ...] = (0,)


QUICK = Config(steps=300, batch=64)


def run(config: Config) -> Results:
    return spd_resid_mlp.run(config)


__all__ = ["QUICK", "Config", "figure", "run"]
