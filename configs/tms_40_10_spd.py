"""SPD on forty features in ten dimensions, by the recipe of 2026, with a smaller batch.

    jax-interp decompose tms_40_10_spd

The published batch is 4096; 512 does as well and takes a quarter of the time (five to six minutes on two CPU cores).
Forty components alive, identity-CI errors 0 and 0, MMCS at least .999, ML2R 1.00 ± .01.
"""

from dataclasses import replace

from jax_interp.decomposition.presets import preset
from jax_interp.recipes.decomposition import DecompositionRunConfig

CONFIG = DecompositionRunConfig(
    decomposition=replace(preset("tms_40_10"), batch=512, source="as yaml of 2026-06, batch 512"), target="tms:40-10"
)
