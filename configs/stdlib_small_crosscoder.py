"""A ReLU crosscoder of the residual stream after every block, on stdlib-small. Its L1 penalty is weighted by decoder
norms.

    jax-interp train-dictionary stdlib_small_crosscoder

Two CPU cores, a few minutes (1.2 M tokens). What to expect has not been measured yet.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.crosscoder(
        tuple(f"blocks.{layer}.resid_post" for layer in range(4)), l1=0.01, n_features=2048, steps=600
    ),
    batch=8,
    context=256,
)
