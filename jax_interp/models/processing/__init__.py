"""Weight processing: pure functions model -> model that change what weights say and not what a model predicts.

Logits or log-probabilities stay; activations, and so ablations, do not: each function says which. `process` applies
the usual ones in TransformerLens's order. Raw weights are what `load` gives.
"""

from jax_interp.models.processing.centering import center_unembed, center_writing_weights
from jax_interp.models.processing.heads import factor_attention, fold_value_bias
from jax_interp.models.processing.layernorm import fold_layernorm
from jax_interp.models.processing.process import process

__all__ = [
    "center_unembed",
    "center_writing_weights",
    "factor_attention",
    "fold_layernorm",
    "fold_value_bias",
    "process",
]
