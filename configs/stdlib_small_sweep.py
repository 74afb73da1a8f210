"""A grid of TopK dictionaries on stdlib-small: three values of k at three layers, one stream of activations.

    jax-interp train-dictionary stdlib_small_sweep

Two CPU cores: about six minutes. The Pareto plot in the report has one line per layer.
"""

from jax_interp.dictionaries import variants
from jax_interp.dictionaries.training.sweep import Sweep
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.topk("blocks.2.resid_post", k=64, n_features=2048, steps=400),
    sweep=Sweep(k=(16, 32, 64), addresses=("blocks.0.resid_post", "blocks.1.resid_post", "blocks.2.resid_post")),
    batch=8,
    context=256,
    evaluate_sequences=64,
)
