"""A cross-layer transcoder of GPT-2 small: 12 layers of 10,752 latents, 129,024 in all. Planned, not run.

    jax-interp plan gpt2_small_clt --mesh data=8,tensor=8 --device h100

Memory of a device: 4.39 GB. A step: 353 ms to 408 ms. The run: 188.27 h to 217.71 h of devices.

    jax-interp train-dictionary gpt2_small_clt --mesh data=8,tensor=8

The figures are those of the first command; nothing has been trained with this config yet. Give the text by
--text.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig
from jax_interp.recipes.feature_page import FeaturePageConfig

LAYERS = range(12)
CONFIG = DictionaryRunConfig(
    dictionary=variants.batch_topk_cross_layer(
        tuple(f"blocks.{i}.ln2.normalized" for i in LAYERS),
        tuple(f"blocks.{i}.mlp_out" for i in LAYERS),
        k=16,
        n_features=10_752,
        steps=30_000,
        buffer=2**17,
    ),
    model="gpt2",
    batch=64,
    context=128,
    page=FeaturePageConfig(features=1024, tokens=1_000_000),
    checkpoint_every=1000,
)
