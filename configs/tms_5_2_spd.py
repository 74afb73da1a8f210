"""SPD on the toy model of superposition with five features in two dimensions, with the settings of 2026.

    jax-interp decompose tms_5_2_spd

On two CPU cores, the target trains in seconds and the decomposition in about two minutes. Figures: five components
alive, one for each feature, identity-CI errors 0 and 0, MMCS at least 0.999, ML2R within [0.98, 1.03].
"""

from jax_interp.decomposition.presets import preset
from jax_interp.recipes.decomposition import DecompositionRunConfig

CONFIG = DecompositionRunConfig(decomposition=preset("tms_5_2"), target="tms:5-2")
