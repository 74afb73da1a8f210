"""A JumpReLU dictionary with a target L0 of 32, on stdlib-small.

    jax-interp train-dictionary stdlib_small_jumprelu

1.2 M tokens: three minutes on two CPU cores. One run gave, on held-out text, L0 32.7, FVU 0.138, 95.9 % of the loss
recovered against mean ablation, 22 of 2,048 features dead.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.jumprelu("blocks.2.resid_post", target=32.0, n_features=2048, steps=600),
    batch=8,
    context=256,
)
