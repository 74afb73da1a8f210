"""A few steps of `tms_5_2_spd` with a small batch. It only tests that everything runs.

jax-interp decompose tms_5_2_spd_tiny
"""

from dataclasses import replace

from jax_interp.decomposition.presets import preset
from jax_interp.recipes.decomposition import DecompositionRunConfig

CONFIG = DecompositionRunConfig(
    decomposition=replace(preset("tms_5_2"), steps=20, batch=64, C=8),
    target="tms:5-2",
    evaluate_rows=32,
    linearity_rows=8,
    adversary_steps=(5,),
    log_every=5,
    checkpoint_every=10,
)
