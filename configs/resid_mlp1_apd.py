"""APD on a residual MLP of one layer that computes 100 features with 50 neurons, by the published configuration.

    jax-interp decompose resid_mlp1_apd

10,000 steps of batch 256 at .4 s each: a little over an hour of one CPU core. In the collapsed stream, where the losses
that are means over weights have a tenth as many, their coefficients are a tenth: the same balance. `--no-collapsed`
with the published ones (1 and 10) costs seven times as much.
"""

from dataclasses import replace

from jax_interp.cli.decompose import DecompositionRunConfig
from jax_interp.decomposition.presets import APD_PRESETS

CONFIG = DecompositionRunConfig(
    decomposition=replace(
        APD_PRESETS["resid_mlp1"],
        parameter_match=0.1,
        simplicity=1.0,
        source="as yaml of APD 2025, in the collapsed stream",
    ),
    target="resid-mlp:1-layer",
    adversary_steps=(20, 80),
)
