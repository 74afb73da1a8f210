"""A BatchTopK cross-layer transcoder: every MLP's input to its own output and those of later layers, on stdlib-small.

    jax-interp train-dictionary stdlib_small_batch_topk_cross_layer

1.2 M tokens: 17 minutes on one of two CPU cores, the other busy. One run gave, on held-out text, L0 61.0 (of all four
sources), FVU 0.179 (0.066, 0.255, 0.241, 0.230 layer by layer), 226 of 4,096 features dead, 205 of them in the first
layer. Of the loss, against mean ablation of all four outputs, 97.5 % recovered where the latents are those of the clean
run, 96.7 % in the replacement model. AuxK took up four times as many dead latents of the first layer then.
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
