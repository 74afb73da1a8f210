"""SPD on a residual MLP of one layer that computes 100 features with 50 neurons, with the settings of 2026.

    jax-interp decompose resid_mlp1_spd

20,000 steps of batch 2048. `python -m experiments spd_resid_mlp` uses the same settings with batches of 512, on the
target of the SPD paper. With each of two seeds, it measured on one-hot inputs: 100 components of `mlp.up` are alive,
with no identity-CI error at tolerance 0.1; 50 components of `mlp.down` are alive, with no error against a dense block.
"""

from jax_interp.decomposition.presets import preset
from jax_interp.recipes.decomposition import DecompositionRunConfig

CONFIG = DecompositionRunConfig(decomposition=preset("resid_mlp1"), target="resid-mlp:1-layer", evaluate_rows=1024)
