"""APD on the toy model of superposition with five features in two dimensions, by the paper's settings.

    jax-interp decompose tms_5_2_apd

20,000 steps of batch 2048, some 200 a second: two and a quarter minutes of one CPU core, measuring included. Each of
five components is one feature: identity error 0, MMCS .999, ML2R .90 (the paper: .998 and .893; simplicity shrinks
them). Now and then a seed ends in another minimum, with features shared (experiments/apd_tms.py).
"""

from jax_interp.decomposition.presets import APD_PRESETS
from jax_interp.recipes.decomposition import DecompositionRunConfig

CONFIG = DecompositionRunConfig(decomposition=APD_PRESETS["tms_5_2"], target="tms:5-2")
