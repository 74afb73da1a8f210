"""A Matryoshka dictionary with nested prefixes of a BatchTopK code, on stdlib-small.

    jax-interp train-dictionary stdlib_small_matryoshka

1.2 M tokens: 16 minutes on two CPU cores of a busy machine, 6.1 of processor time. One run gave, on held-out text, L0
31.0, FVU 0.191, 94.7 % of the loss recovered against mean ablation, 1 of 2,048 features dead.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.matryoshka("blocks.2.resid_post", k=32, n_features=2048, steps=600),
    batch=8,
    context=256,
)
