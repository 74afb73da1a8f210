"""JumpReLU with a tanh penalty and free decoder norms, on stdlib-small.

    jax-interp train-dictionary stdlib_small_tanh_jumprelu

Two CPU cores, a few minutes (1.2 M tokens). What to expect has not been measured yet.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.tanh_jumprelu("blocks.2.resid_post", n_features=2048, steps=600),
    batch=8,
    context=256,
)
