"""Norms without weights: what they scale and shift by is put into the matrices that read what they give."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from jax_interp.core.errors import UserError
from jax_interp.core.norms import Norm
from jax_interp.models.block import Block
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder
from jax_interp.models.mlp import MLP
from jax_interp.models.processing.parts import copy, each_block, mean, put, reconfigure, untie, values_of, with_bias


def fold_layernorm(model: Decoder) -> Decoder:
    """The same logits from norms that only normalise: `W <- w[:, None] * W`, `b <- b + b_norm @ W`.

    After LayerNorm, whose output without weights has mean zero over `d_model`, `W` is centred over that axis too:
    `W <- W - mean(W, axis=0)`. Folded are the norms before attention and MLP (for parallel blocks with one norm, into
    what reads it on both sides), the final norm into the unembedding, and a norm of the neurons into `mlp.down`.

    Changes: every weight that reads the stream; `attn.q`, `mlp.pre` etc. have the same values to rounding, and so has
    every named value, as `normalized` is before the norm's weights in the first place.
    The config: `norm_affine=False` where all norms of the stream are folded, `tied_embedding=False`, and biases where
    a LayerNorm's bias needs somewhere to go (`qkv_bias`, `mlp_bias`, `unembed_bias`). Norms that stand after attention
    or MLP (`norm_places` "around", "after") feed no matrix and keep their weights, as q/k norms do; the config then
    stays affine, and a folded norm has the weight that changes nothing.

    TransformerLens (4.3) does not centre `W_gate`, which is centred here like the rest.

    Raises `UserError` for a model without norms, and for experts behind a LayerNorm, which have no biases.
    """
    model = copy(model, "fold_layernorm")
    config = model.config
    if config.norm == "none":
        raise UserError("fold_layernorm: this model has no norms (config.norm is 'none'), there is nothing to fold")
    shifts = config.norm == "layernorm" and config.norm_affine
    inside = config.norm_places != "after"
    if config.n_experts and shifts:
        raise UserError("fold_layernorm: the bias of a LayerNorm cannot go into experts, which have no biases")
    each_block(model, lambda block: _fold_block(block, config))
    unembed = untie(model)
    _fold(model.ln_final, [unembed], drop=config.norm_places == "before")
    reconfigure(
        model,
        norm_affine=config.norm_affine and config.norm_places != "before",
        qkv_bias=config.qkv_bias or (shifts and inside),
        mlp_bias=config.mlp_bias or (bool(config.d_mlp) and ((shifts and inside) or config.mlp_norm)),
        unembed_bias=config.unembed_bias or shifts,
    )
    return model


def _fold_block(block: Block, config: Config) -> None:
    attention, network = [block.attn.q, block.attn.k, block.attn.v], _readers(block.mlp)
    drop = config.norm_places == "before"
    if config.parallel == "one norm":
        _fold(block.ln1, attention + network, drop=drop)
    else:
        _fold(block.ln1, attention, drop=drop)
        _fold(block.ln2, network, drop=drop)
    if isinstance(block.mlp, MLP):
        _fold(block.mlp.ln, [block.mlp.down], drop=drop)
        linears = [*network, block.mlp.down]
        if any(linear.bias is not None for linear in linears):  # the config says it of all three at once
            for linear in linears:
                with_bias(linear)


def _readers(mlp: Any) -> list[Any]:
    """What reads the stream in an MLP or a mixture of experts."""
    if mlp is None:
        return []
    return [part for part in (mlp.up, mlp.gate, getattr(mlp, "router", None)) if part is not None]


def _fold(norm: Norm | None, readers: list[Any], *, drop: bool) -> None:
    """Into each reader `[..., d_in, d_out]`; the norm loses its weights or gets those that change nothing."""
    if norm is None:
        return
    shift = None if norm.bias is None else values_of(norm.bias)
    for reader in readers:
        weight = values_of(reader.weight)
        if shift is not None:
            with_bias(reader)
            reader.bias = put(reader.bias, values_of(reader.bias) + jnp.sum(weight * shift[:, None], axis=-2))
        if norm.weight is not None:
            # The matrices of experts have one axis more.
            weight = weight * jnp.expand_dims(norm.multiplier(), (*range(weight.ndim - 2), -1))
        reader.weight = put(reader.weight, weight - mean(weight, -2) if norm.centred else weight)
    if drop:
        norm.weight = nnx.static(None)
    elif norm.weight is not None:
        norm.weight = put(norm.weight, jnp.full_like(values_of(norm.weight), 0 if norm.offset else 1))
    if norm.bias is not None:
        norm.bias = nnx.static(None) if norm.weight is None else put(norm.bias, jnp.zeros_like(values_of(norm.bias)))
