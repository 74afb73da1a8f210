"""A Matryoshka BatchTopK dictionary, on GPT-2 small: full size, 205 M tokens.

    jax-interp train-dictionary gpt2_matryoshka --text DIRECTORY

Made for one accelerator, and for your own text: a file, or a directory of .txt files. Nobody has run it yet, and its
strength is what the small configs suggest: start with a sweep.
"""

from jax_interp.dictionaries import Adam, variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

CONFIG = DictionaryRunConfig(
    dictionary=variants.matryoshka(
        "blocks.8.resid_pre",
        k=64,
        n_features=24_576,
        steps=50_000,
        dead_after=10_000_000,
        optimizer=Adam(4e-4, warmup=1000),
    ),
    model="gpt2",
    batch=32,
    context=128,
    log_every=100,
    checkpoint_every=1000,
)
