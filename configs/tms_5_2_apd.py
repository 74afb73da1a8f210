"""APD on the toy model of superposition with five features in two dimensions, with the settings of the paper.

    jax-interp decompose tms_5_2_apd

20,000 steps with batch 2048, about 200 per second: two and a quarter minutes on one CPU core, including evaluation.
Each of five components is one feature: identity error 0, MMCS 0.999, ML2R 0.90 (the paper: 0.998 and 0.893; the
simplicity loss shrinks components). Some seeds end in another minimum, where components share features
(experiments/apd_tms.py).
"""

from jax_interp.decomposition.presets import APD_PRESETS
from jax_interp.recipes.decomposition import DecompositionRunConfig

CONFIG = DecompositionRunConfig(decomposition=APD_PRESETS["tms_5_2"], target="tms:5-2")
