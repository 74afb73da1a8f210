"""A decomposition of the MLPs of Llama 3.2 1B, 4,096 components for each matrix. Planned, not run.

    jax-interp plan llama_1b_spd --mesh data=8,fsdp=4,tensor=8 --device h100

Memory of a device: 58.1 GB. A step: 3.17 s to 4.28 s. The run: 22,534.88 h to 30,404.96 h of devices.

    jax-interp decompose llama_1b_spd --mesh data=8,fsdp=4,tensor=8

The figures are those of the first command; nothing has been trained with this config yet.
"""

from jax_interp.decomposition.config import DecompositionConfig
from jax_interp.recipes.decomposition import DecompositionRunConfig

CONFIG = DecompositionRunConfig(
    decomposition=DecompositionConfig(
        matrices=("blocks.*.mlp.up", "blocks.*.mlp.gate", "blocks.*.mlp.down"), C=4096, steps=100_000, batch=64
    ),
    target="meta-llama/Llama-3.2-1B",
    context=128,
    checkpoint_every=1000,
)
