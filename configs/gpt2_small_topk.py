"""A TopK SAE of 24,576 latents on the middle of GPT-2 small, on eight H100 of one node. Planned, not run.

    jax-interp plan gpt2_small_topk --mesh data=8 --device h100

Memory of a device: 8.14 GB. A step: 29.8 ms to 52 ms. The run: 0.61 h to 1.06 h of devices.

    jax-interp train-dictionary gpt2_small_topk --mesh data=8

300 million tokens. The figures are those of the first command; nothing has been trained with this config yet. Give the
text by --text.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.feature_page import FeaturePageConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.topk(
        "blocks.6.resid_pre", k=32, n_features=24_576, steps=9_200, buffer=2**20,
    ),
    model="gpt2",
    batch=256,
    context=128,
    page=FeaturePageConfig(features=1024, tokens=1_000_000),
    checkpoint_every=1000,
)  # fmt: skip
