"""A TopK dictionary on the residual stream after block 2 of stdlib-small.

jax-interp train-dictionary stdlib_small_topk
"""

from jax_interp.cli.dictionary_run import DictionaryRunConfig
from jax_interp.dictionaries.train import DictionaryConfig

CONFIG = DictionaryRunConfig(
    model="stdlib-small",
    text="stdlib",
    dictionary=DictionaryConfig(address="blocks.2.resid_post", n_features=4096, k=32, steps=1500),
    batch=8,
    context=256,
    evaluate_sequences=256,
)
