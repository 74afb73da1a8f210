"""A JumpReLU cross-layer transcoder with a tanh penalty of all twelve MLPs of GPT-2 small: full size, 205 M tokens.

    jax-interp train-dictionary gpt2_cross_layer --text DIRECTORY

12 encoders and 78 decoders of 8,192 features hold 566 M weights: with their gradients and Adam's moments 9 GB, beside
them 5 GB of shuffled activations and the latents of 4,096 tokens. Made for one accelerator, and for your own text: a
file, or a directory of .txt files. Nobody has run it yet, and its strength is what the small config suggests.
"""

from jax_interp.dictionaries import Adam, variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

LAYERS = range(12)

CONFIG = DictionaryRunConfig(
    dictionary=variants.cross_layer(
        tuple(f"blocks.{layer}.ln2.normalized" for layer in LAYERS),
        tuple(f"blocks.{layer}.mlp_out" for layer in LAYERS),
        n_features=8192,
        steps=50_000,
        dead_after=10_000_000,
        optimizer=Adam(4e-4, warmup=1000, clip=1.0),
    ),
    model="gpt2",
    batch=32,
    context=128,
    log_every=100,
    checkpoint_every=1000,
)
