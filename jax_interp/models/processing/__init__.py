"""Weight processing: pure functions from a model to a model with the same predictions and simpler weights.

Logits or log-probabilities stay the same. Activations may change, and so may the effects of ablations. Each function
documents which activations change. `process` applies the usual functions in the order of TransformerLens.
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
