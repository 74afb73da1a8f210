"""Centring: remove the mean of the residual stream, and the mean of the logits. No prediction depends on them."""

from __future__ import annotations

from jax_interp.core.errors import UserError
from jax_interp.models.block import Block
from jax_interp.models.decoder import Decoder
from jax_interp.models.processing.parts import centred, copied, each_block, untie, values_of, with_value


def center_writing_weights(model: Decoder) -> Decoder:
    """Center the weights that write to the residual stream over `d_model`. The logits stay the same.

    The mean of the stream has no effect, because LayerNorm subtracts it. This function subtracts the mean over
    `d_model` from the weights and biases of `embed`, `pos_embed`, `attn.o` and `mlp.down` (also of experts).

    Changes: the values of the stream and the values that are added to it (`embed`, `attn_out`, `mlp_out`, `resid_*`).
    Each loses its mean. Values after a norm stay the same. A tied embedding is untied, because the unembedding must not
    change.

    Raises:
      UserError: a part of the model reads the stream without a LayerNorm. This is so for RMSNorm (which keeps the
        mean), for models without norms, and for models with norms after attention and MLP.
    """
    model = copied(model, "center_writing_weights")
    config = model.config
    if config.norm != "layernorm":
        raise UserError(
            f"center_writing_weights needs LayerNorm, which subtracts the mean of the stream; norm={config.norm!r} "
            "keeps it, so the logits would change. Leave this step out"
        )
    if config.norm_places != "before":
        raise UserError(
            f"center_writing_weights needs norms before attention and MLP, this model has norm_places="
            f"{config.norm_places!r}: a norm writes to the stream, and its output cannot be centred by weights"
        )
    untie(model)
    for embedding in (model.embed, model.pos_embed):
        if embedding is not None:
            embedding.weight = with_value(embedding.weight, centred(values_of(embedding.weight), -1))
    each_block(model, _center_block)
    return model


def center_unembed(model: Decoder) -> Decoder:
    """Center the unembedding over the vocabulary. The log-probabilities stay the same.

    `W_U <- W_U - mean(W_U, axis=1)`, and the same for the bias.

    Changes: `logits`, by one number at each position. They then have mean zero over the vocabulary, so the contribution
    of a component to a logit is relative to its contribution to the mean logit. A tied embedding is untied.

    Raises:
      UserError: the model has a softcap on its logits. A shift before the tanh would change log-probabilities.
    """
    model = copied(model, "center_unembed")
    if model.config.logit_softcap:
        raise UserError(
            f"center_unembed: this model caps its logits (logit_softcap={model.config.logit_softcap}), so a shift of "
            "all logits would change its predictions. Leave this step out"
        )
    unembed = untie(model)
    unembed.weight = with_value(unembed.weight, centred(values_of(unembed.weight), -1))
    if unembed.bias is not None:
        unembed.bias = with_value(unembed.bias, centred(values_of(unembed.bias), -1))
    return model


def _center_block(block: Block) -> None:
    for writer in (block.attn.o, None if block.mlp is None else block.mlp.down):
        if writer is None:
            continue
        writer.weight = with_value(writer.weight, centred(values_of(writer.weight), -1))
        if writer.bias is not None:
            writer.bias = with_value(writer.bias, centred(values_of(writer.bias), -1))
