"""The usual processing, in TransformerLens's order."""

from __future__ import annotations

from jax_interp.models.decoder import Decoder
from jax_interp.models.processing.centering import center_unembed, center_writing_weights
from jax_interp.models.processing.heads import factor_attention as factored
from jax_interp.models.processing.heads import fold_value_bias
from jax_interp.models.processing.layernorm import fold_layernorm


def process(model: Decoder, *, factor_attention: bool = False) -> Decoder:
    """What TransformerLens's `from_pretrained` makes of a model by default; the same log-probabilities.

    `fold_layernorm`, `center_writing_weights`, `center_unembed`, `fold_value_bias` in this order, each where it
    applies: no norms, nothing to fold; writing weights are centred before LayerNorms only; a capped unembedding is
    left alone. Called by itself each raises where it does not apply. `factor_attention`, last, is asked for and so
    raises. Another selection is a composition of the functions.

    All of them compute in float32 at least and round to the model's dtype at their end. A processed model is no longer
    one of its family: `save` writes it in TransformerLens's layout where that has such a model, and otherwise refuses.
    """
    config = model.config
    if config.norm != "none":
        model = fold_layernorm(model)
    if config.norm == "layernorm" and config.norm_places == "before":
        model = center_writing_weights(model)
    if not config.logit_softcap:
        model = center_unembed(model)
    model = fold_value_bias(model)
    return factored(model) if factor_attention else model
