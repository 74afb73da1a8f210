"""A Gated dictionary, on stdlib-small.

    jax-interp train-dictionary stdlib_small_gated

1.2 M tokens: three and a half minutes on two CPU cores. One run gave, on held-out text, L0 109, FVU 0.109, 97.6 % of
the loss recovered against mean ablation, no dead feature.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.gated("blocks.2.resid_post", l1=0.01, n_features=2048, steps=600),
    batch=8,
    context=256,
)
