"""`process`: the usual processing, in TransformerLens's order."""

from __future__ import annotations

from jax_interp.models.decoder import Decoder
from jax_interp.models.processing.centering import center_unembed, center_writing_weights
from jax_interp.models.processing.heads import factor_attention as factored
from jax_interp.models.processing.heads import fold_value_bias
from jax_interp.models.processing.layernorm import fold_layernorm


def process(model: Decoder, *, factor_attention: bool = False) -> Decoder:
    """Process the weights of a model as TransformerLens's `from_pretrained` does by default.

    The log-probabilities stay the same. It applies `fold_layernorm`, `center_writing_weights`, `center_unembed` and
    `fold_value_bias`, in this order, and leaves out those that do not apply to the model: `fold_layernorm` without
    norms, `center_writing_weights` where LayerNorm does not precede attention and MLP, `center_unembed` with a softcap
    on the logits. For another selection, compose the functions: each raises an error where it does not apply.

    All functions compute in float32 at least and round to the dtype of the model at the end. `save` writes a processed
    model where a family has such models (TransformerLens's layout for a GPT-2), and raises an error otherwise.

    Args:
      model: a decoder without surgery.
      factor_attention: also apply `factor_attention`, last.

    Returns:
      A new decoder. The given one is unchanged.

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
