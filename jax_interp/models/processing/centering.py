"""What no prediction depends on, taken out: the mean of the stream before LayerNorms, the mean of the logits."""

from __future__ import annotations

from typing import Any

from jax_interp.core.errors import UserError
from jax_interp.models.block import Block
from jax_interp.models.decoder import Decoder
from jax_interp.models.processing.parts import copy, each_block, mean, put, untie, values_of


def center_writing_weights(model: Decoder) -> Decoder:
    """The same logits from a residual stream without its mean over `d_model`, which LayerNorm takes out anyhow.

    `embed`, `pos_embed`, `attn.o` and `mlp.down` (experts' too) lose their mean over `d_model`, weights and biases.

    Changes: the values of the stream and what is added to it (`embed`, `attn_out`, `mlp_out`, `resid_*`), each by its
    mean; nothing after a norm. A tied embedding becomes two, as the unembedding must stay what it was.

    Raises `UserError` unless all that reads the stream reads it through a LayerNorm: for RMSNorm, which keeps the
    mean, for models without norms, and for norms that stand after attention and MLP.
    """
    model = copy(model, "center_writing_weights")
    config = model.config
    if config.norm != "layernorm":
        raise UserError(
            f"center_writing_weights needs LayerNorm, which takes out the mean of the stream; norm={config.norm!r} "
            "keeps it, and the logits would change. Leave this step out"
        )
    if config.norm_places != "before":
        raise UserError(
            f"center_writing_weights needs norms before attention and MLP, these stand {config.norm_places!r}: what "
            "is added to the stream is what a norm gives, and no weight to be centred"
        )
    untie(model)
    for embedding in (model.embed, model.pos_embed):
        if embedding is not None:
            embedding.weight = put(
                embedding.weight, values_of(embedding.weight) - mean(values_of(embedding.weight), -1)
            )
    each_block(model, _center_block)
    return model


def center_unembed(model: Decoder) -> Decoder:
    """The same log-probabilities from logits that have mean zero over the vocabulary: `W_U <- W_U - mean(W_U, axis=1)`.

    Changes: `logits`, by one number at each position, and so what a component adds to a logit by itself, which is now
    what it adds beyond the average token's. Nothing else. A tied embedding becomes two.

    Raises `UserError` for a model with a softcap on its logits: a shift before tanh changes log-probabilities.
    """
    model = copy(model, "center_unembed")
    if model.config.logit_softcap:
        raise UserError(
            f"center_unembed: this model caps its logits (logit_softcap={model.config.logit_softcap}), so that a shift "
            "of all of them changes its predictions. Leave this step out"
        )
    unembed = untie(model)
    unembed.weight = put(unembed.weight, values_of(unembed.weight) - mean(values_of(unembed.weight), -1))
    if unembed.bias is not None:
        unembed.bias = put(unembed.bias, values_of(unembed.bias) - mean(values_of(unembed.bias), -1))
    return model


def _center_block(block: Block) -> None:
    writers: list[Any] = [block.attn.o] + ([] if block.mlp is None else [block.mlp.down])
    for writer in writers:
        writer.weight = put(writer.weight, values_of(writer.weight) - mean(values_of(writer.weight), -1))
        bias = getattr(writer, "bias", None)  # experts have none
        if bias is not None:
            writer.bias = put(bias, values_of(bias) - mean(values_of(bias), -1))
