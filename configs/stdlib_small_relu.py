"""ReLU with an L1 penalty, decoder rows of norm 1, on stdlib-small.

    jax-interp train-dictionary stdlib_small_relu

Two CPU cores, a few minutes (1.2 M tokens). What to expect has not been measured yet.
"""

from jax_interp.cli.dictionary_run import DictionaryRunConfig
from jax_interp.dictionaries import Resampling, variants

CONFIG = DictionaryRunConfig(
    dictionary=variants.relu(
        "blocks.2.resid_post", l1=0.01, n_features=2048, steps=600, resampling=Resampling(every=150)
    ),
    batch=8,
    context=256,
)
