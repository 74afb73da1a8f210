"""SPD on a residual MLP of one layer that computes 100 features with 50 neurons, by the recipe of 2026.

    jax-interp decompose resid_mlp1_spd

20,000 steps of batch 2048: an hour or less on two CPU cores. Expected on one-hot probes: `mlp.up` one component a
feature (100 alive), `mlp.down` 50 components, shared by all.
"""

from jax_interp.cli.decompose import DecompositionRunConfig
from jax_interp.decomposition.presets import preset

CONFIG = DecompositionRunConfig(decomposition=preset("resid_mlp1"), target="resid-mlp:1-layer", evaluate_rows=1024)
