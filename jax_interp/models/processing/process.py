"""`process`: the default processing of TransformerLens."""

from __future__ import annotations

from jax_interp.models.decoder import Decoder
from jax_interp.models.processing.centering import center_unembed, center_writing_weights
from jax_interp.models.processing.heads import factor_attention as factored
from jax_interp.models.processing.heads import fold_value_bias
from jax_interp.models.processing.layernorm import fold_layernorm


def process(model: Decoder, *, factor_attention: bool = False) -> Decoder:
    """Process the weights of a model as TransformerLens's `from_pretrained` does by default.

    The log-probabilities stay the same. The function applies `fold_layernorm`, `center_writing_weights`,
    `center_unembed` and `fold_value_bias`, in this order. It skips steps that do not apply to the model:
    `fold_layernorm` if there are no norms, `center_writing_weights` if attention and MLP do not follow a LayerNorm, and
    `center_unembed` if the logits have a softcap. For another selection, call the functions yourself. Each raises an
    error if it does not apply.

    All functions compute in at least float32 and round to the dtype of the model at the end. `save` can write a
    processed model if some family has such models (a GPT-2 is written in the layout of TransformerLens).

    Args:
      model: a decoder without surgery.
      factor_attention: whether to apply `factor_attention` as the last step.

    Returns:
      A new decoder. `model` is unchanged.

    Raises:
      UserError: `model` is not a `Decoder`, or `factor_attention` does not apply to it.

    Example:
        model, tokenizer = load("stdlib-small")
        processed = process(model)
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
