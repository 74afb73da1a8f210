"""A JumpReLU dictionary drawn to an L0 of 32, on stdlib-small.

    jax-interp train-dictionary stdlib_small_jumprelu

Two CPU cores, a few minutes (1.2 M tokens). What to expect has not been measured yet.
"""

from jax_interp.cli.dictionary_run import DictionaryRunConfig
from jax_interp.dictionaries import variants

CONFIG = DictionaryRunConfig(
    dictionary=variants.jumprelu("blocks.2.resid_post", target=32.0, n_features=2048, steps=600),
    batch=8,
    context=256,
)
