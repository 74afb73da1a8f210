"""A TopK dictionary on the residual stream after block 2 of stdlib-small.

jax-interp train-dictionary stdlib_small_topk
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DictionaryRunConfig(
    model="stdlib-small",
    text="stdlib",
    dictionary=variants.topk("blocks.2.resid_post", k=32, n_features=4096, steps=1500),
    batch=8,
    context=256,
    evaluate_sequences=256,
)
