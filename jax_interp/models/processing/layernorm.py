"""`fold_layernorm`: fold the weights and biases of norms into the matrices that read the outputs of the norms."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from jax_interp.core.errors import UserError
from jax_interp.core.norms import Norm
from jax_interp.models.block import Block
from jax_interp.models.config import Config
from jax_interp.models.decoder import Decoder
from jax_interp.models.mlp import MLP
from jax_interp.models.moe import MixtureOfExperts
from jax_interp.models.processing.parts import (
    LinearMap,
    centred,
    copied,
    each_block,
    ensure_bias,
    reconfigure,
    untie,
    values_of,
    with_value,
)


def fold_layernorm(model: Decoder) -> Decoder:
    """Fold the weights and biases of norms into the matrices that read them. The logits stay the same.

    `b <- b + b_norm @ W` and `W <- w[:, None] * W`, where `w` and `b_norm` are the weight and bias of the norm. The
    output of a LayerNorm without weights has mean zero over `d_model`. After a LayerNorm, `W` is therefore also centred
    over this axis: `W <- W - mean(W, axis=0)`.

    Three kinds of norms are folded: norms before attention and MLP (in parallel blocks with one norm, into both), the
    final norm into the unembedding, and a norm of the neurons into `mlp.down`. No matrix reads norms after attention or
    MLP (`norm_places` "around" or "after"). These norms keep their weights, and so do norms of queries and keys.

    Changes: every weight that reads the stream. Named values stay the same up to rounding. In the config,
    `tied_embedding` becomes False. `norm_affine` becomes False if all norms of the stream are folded; otherwise the
    weights of a folded norm are set to the identity. `qkv_bias`, `mlp_bias` and `unembed_bias` become True if a
    LayerNorm before them had a bias.

    TransformerLens (4.3) does not center `W_gate`. Here it is centred like the other matrices.

    Raises:
      UserError: the model has no norms, or its experts follow a LayerNorm (experts have no biases to fold into).
    """
    model = copied(model, "fold_layernorm")
    config = model.config
    if config.norm == "none":
        raise UserError("fold_layernorm: this model has no norms (config.norm is 'none')")
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
    attention: list[LinearMap] = [block.attn.q, block.attn.k, block.attn.v]
    network = _readers(block.mlp)
    drop = config.norm_places == "before"
    if config.parallel == "one norm":
        _fold(block.ln1, attention + network, drop=drop)
    else:
        _fold(block.ln1, attention, drop=drop)
        _fold(block.ln2, network, drop=drop)
    if isinstance(block.mlp, MLP):
        _fold(block.mlp.ln, [block.mlp.down], drop=drop)
        linears = [*network, block.mlp.down]
        if any(linear.bias is not None for linear in linears):  # `mlp_bias` is one setting for all maps of the MLP
            for linear in linears:
                ensure_bias(linear)


def _readers(mlp: MLP | MixtureOfExperts | None) -> list[LinearMap]:
    """The maps that read the stream in an MLP or a mixture of experts."""
    if mlp is None:
        return []
    if isinstance(mlp, MixtureOfExperts):
        return [mlp.up, mlp.gate, mlp.router]
    return [mlp.up] if mlp.gate is None else [mlp.up, mlp.gate]


def _fold(norm: Norm | None, readers: Sequence[LinearMap], *, drop: bool) -> None:
    """Fold a norm into each of `readers`, whose weights are `[..., d_in, d_out]`.

    With `drop` the weights of the norm are removed. Otherwise they are set to the identity.
    """
    if norm is None:
        return
    multiplier, shift = norm.multiplier(), None if norm.bias is None else values_of(norm.bias)
    for reader in readers:
        weight = values_of(reader.weight)
        if shift is not None:
            ensure_bias(reader)
            reader.bias = with_value(reader.bias, values_of(reader.bias) + jnp.sum(weight * shift[:, None], axis=-2))
        if multiplier is not None:
            # The matrices of experts have one more axis.
            weight = weight * jnp.expand_dims(multiplier, (*range(weight.ndim - 2), -1))
        reader.weight = with_value(reader.weight, centred(weight, -2) if norm.centred else weight)
    if drop:
        norm.weight = nnx.static(None)
    elif norm.weight is not None:
        norm.weight = with_value(norm.weight, jnp.full_like(values_of(norm.weight), 0 if norm.offset else 1))
    if norm.bias is not None:
        zeros = with_value(norm.bias, jnp.zeros_like(values_of(norm.bias)))
        norm.bias = nnx.static(None) if norm.weight is None else zeros
