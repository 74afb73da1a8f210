"""A JumpReLU cross-layer transcoder with a tanh penalty, on stdlib-small. It reads the input of each MLP, and writes
the output of this MLP and of later MLPs.

    jax-interp train-dictionary stdlib_small_cross_layer

Two CPU cores, a quarter of an hour (1.2 M tokens). What to expect has not been measured yet.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

LAYERS = range(4)

CONFIG = DictionaryRunConfig(
    dictionary=variants.cross_layer(
        tuple(f"blocks.{layer}.ln2.normalized" for layer in LAYERS),
        tuple(f"blocks.{layer}.mlp_out" for layer in LAYERS),
        n_features=1024,
        steps=600,
    ),
    batch=8,
    context=256,
)
