"""The features of a dictionary of 131,072 latents on Llama 3.1 8B, over 100 million tokens. Planned, not run.

    jax-interp plan llama_8b_features --of features --mesh data=8,tensor=8 --device h100

Memory of a device: 8.3 GB. A step: 312 ms to 396 ms. The run: 33.80 h to 43.02 h of devices.

    jax-interp train-dictionary llama_8b_features --mesh data=8,tensor=8

The figures are those of the first command, for the pass for the page; nothing has been run with this config yet.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.feature_page import FeaturePageConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.topk("blocks.16.resid_post", k=64, n_features=131_072, steps=30_000, buffer=2**19),
    model="meta-llama/Llama-3.1-8B",
    dtype="bfloat16",
    batch=64,
    context=256,
    page=FeaturePageConfig(features=131_072, tokens=100_000_000),
    checkpoint_every=1000,
)
