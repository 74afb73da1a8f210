"""A BatchTopK cross-layer transcoder, on stdlib-small. It reads the input of each MLP, and writes the output of this
MLP and of later MLPs.

    jax-interp train-dictionary stdlib_small_batch_topk_cross_layer

1.2 M tokens: 17 minutes on one of two CPU cores, the other busy. One run gave, on held-out text, L0 61.0 (all four
sources together), FVU 0.179 (by layer: 0.066, 0.255, 0.241, 0.230), 226 of 4,096 features dead (205 in the first
layer). Against mean ablation of all four outputs, 97.5 % of the loss is recovered with latents of the clean run, and
96.7 % in the replacement model. In this run, AuxK used four times as many
dead latents in the first layer as it does now.
"""

from jax_interp.dictionaries import variants
from jax_interp.recipes.dictionary import DictionaryRunConfig

LAYERS = range(4)

CONFIG = DictionaryRunConfig(
    dictionary=variants.batch_topk_cross_layer(
        tuple(f"blocks.{layer}.ln2.normalized" for layer in LAYERS),
        tuple(f"blocks.{layer}.mlp_out" for layer in LAYERS),
        k=16,
        n_features=1024,
        steps=600,
    ),
    batch=8,
    context=256,
)
