"""The weights of a decoder by role, all layers in one array, with the names and axes of TransformerLens.

These are the raw weights. The weights of norms are not multiplied into them; `processing.fold_layernorm` does that. If
a group of query heads shares a key/value head, this head is repeated, so that head h is query head h in every function.
With `grouped=True` it is not repeated. Missing biases are zeros. For a model with surgery, these are the weights of the
original model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jax_interp.core.errors import UserError
from jax_interp.core.norms import Norm
from jax_interp.models.config import Config
from jax_interp.surgery import Model, blocks_as_pytree
from jax_interp.surgery.taps import Tapped


@runtime_checkable
class DecoderLike(Protocol):
    """The attributes of a model that analyses of weights need. `jax_interp.models.Decoder` has them.

    Attributes:
      config: the sizes, and what the blocks are made of.
      embed: the token embedding, with `weight` `[vocab, d_model]`.
      pos_embed: the learned position vectors, or None.
      blocks: segments of blocks with `ln1`, `attn.{q, k, v, o}`, `ln1_post`, `ln2`, `mlp.{up, gate, down}`, `ln2_post`.
      ln_final: the norm before the unembedding, or None.
      unembed: the unembedding, with `weight` `[d_model, vocab]`; None if it is the embedding's transpose.
    """

    config: Config
    embed: Any
    pos_embed: Any
    blocks: Any
    ln_final: Norm | None
    unembed: Any

    def __call__(self, *args: Any, taps: tuple = (), **kwargs: Any) -> Any: ...


def decoder(model: Model) -> DecoderLike:
    """The decoder inside all surgeries. Raises UserError if the model is not a decoder."""
    while isinstance(model, Tapped):
        model = model.model
    if not isinstance(model, DecoderLike):
        raise UserError(
            "this analysis takes weights by their role, so it needs a decoder (with config, embed, blocks, ln_final, "
            f"unembed) as `load` returns; got {type(model).__name__}. Functions of activations alone take any arrays"
        )
    return model


def by_layer(model: Model, part: Callable[[Any], PyTree]) -> PyTree:
    """`part(block)` of every block, as one pytree whose leaves have a leading layer axis.

    Args:
      model: a decoder, with or without surgery.
      part: takes a block and returns a weight, or a module of the block.

    Raises:
      UserError: a block does not have this part, because it was replaced.
    """
    try:
        return blocks_as_pytree(decoder(model), part)
    except AttributeError as error:
        raise UserError(
            f"a part of this model has no such weight ({error}): something else was put in its place"
        ) from error


def W_E(model: Model) -> Float[Array, "vocab d_model"]:
    """The embedding matrix. The stream starts with its rows times `config.embed_scale`."""
    return decoder(model).embed.weight[...]


def W_pos(model: Model) -> Float[Array, "n_ctx d_model"]:
    """The learned position vectors. Raises UserError for a model that has none."""
    inner = decoder(model)
    if inner.pos_embed is None:
        raise UserError(f"this model learns no position vectors (positions={inner.config.positions!r})")
    return inner.pos_embed.weight[...][inner.config.position_offset :]


def W_U(model: Model) -> Float[Array, "d_model vocab"]:
    """The unembedding matrix: the embedding's transpose where the two are tied."""
    inner = decoder(model)
    return inner.embed.weight[...].T if inner.unembed is None else inner.unembed.weight[...]


def b_U(model: Model) -> Float[Array, "vocab"]:
    """The bias of the unembedding."""
    inner = decoder(model)
    if inner.unembed is None or inner.unembed.bias is None:
        return jnp.zeros(inner.config.vocab_size, W_U(inner).dtype)
    return inner.unembed.bias[...]


def W_Q(model: Model) -> Float[Array, "layer head d_model d_head"]:
    """From the stream to queries."""
    return _head_weight(model, "q")


def W_K(model: Model, *, grouped: bool = False) -> Float[Array, "layer head d_model d_head"]:
    """From the stream to keys. `grouped`: each shared key head once, `[layer, kv_head, d_model, d_head]`."""
    return _repeat_groups(model, _head_weight(model, "k"), grouped)


def W_V(model: Model, *, grouped: bool = False) -> Float[Array, "layer head d_model d_head"]:
    """From the stream to values. `grouped` as in `W_K`."""
    return _repeat_groups(model, _head_weight(model, "v"), grouped)


def W_O(model: Model) -> Float[Array, "layer head d_head d_model"]:
    """From the `z` of each head to the stream."""
    weight = by_layer(model, lambda block: block.attn.o.weight[...])
    return weight.reshape(weight.shape[0], -1, decoder(model).config.d_head, weight.shape[-1])


def b_Q(model: Model) -> Float[Array, "layer head d_head"]:
    """The bias of queries."""
    return _head_bias(model, "q")


def b_K(model: Model, *, grouped: bool = False) -> Float[Array, "layer head d_head"]:
    """The bias of keys. `grouped` as in `W_K`."""
    return _repeat_groups(model, _head_bias(model, "k"), grouped)


def b_V(model: Model, *, grouped: bool = False) -> Float[Array, "layer head d_head"]:
    """The bias of values. `grouped` as in `W_K`."""
    return _repeat_groups(model, _head_bias(model, "v"), grouped)


def b_O(model: Model) -> Float[Array, "layer d_model"]:
    """The bias of attention's output, one for all heads of a layer."""
    return by_layer(model, lambda block: _bias(block.attn.o))


def W_in(model: Model) -> Float[Array, "layer d_model d_mlp"]:
    """From the stream to neurons. For a mixture of experts `[layer, expert, d_model, d_mlp]`, as in `W_gate`."""
    return by_layer(_with_mlp(model), lambda block: block.mlp.up.weight[...])


def W_gate(model: Model) -> Float[Array, "layer d_model d_mlp"]:
    """The matrix before the activation function of a gated MLP. Raises UserError where MLPs are not gated."""
    if not decoder(model).config.gated_mlp:
        raise UserError("this model's MLPs are not gated: they have W_in and W_out only")
    return by_layer(_with_mlp(model), lambda block: block.mlp.gate.weight[...])


def W_out(model: Model) -> Float[Array, "layer d_mlp d_model"]:
    """From neurons to the stream. For a mixture of experts `[layer, expert, d_mlp, d_model]`."""
    return by_layer(_with_mlp(model), lambda block: block.mlp.down.weight[...])


def b_in(model: Model) -> Float[Array, "layer d_mlp"]:
    """The bias of neurons. Raises UserError for mixtures of experts."""
    return by_layer(with_dense_mlps(model, "b_in"), lambda block: _bias(block.mlp.up))


def b_out(model: Model) -> Float[Array, "layer d_model"]:
    """The bias of the MLP's output. Raises UserError for mixtures of experts."""
    return by_layer(with_dense_mlps(model, "b_out"), lambda block: _bias(block.mlp.down))


def with_dense_mlps(model: Model, analysis: str) -> DecoderLike:
    """The decoder inside all surgeries. Checks that each layer has one set of neurons.

    Args:
      model: a decoder, with or without surgery.
      analysis: the name of the analysis, for the message.

    Raises:
      UserError: the model has no MLPs, or mixtures of experts.
    """
    inner = _with_mlp(model)
    if inner.config.n_experts:
        raise UserError(
            f"{analysis} is of the neurons of a layer. This model has {inner.config.n_experts} experts in each layer, "
            f"and a token uses {inner.config.experts_per_token} of them: take their weights by W_in, W_gate and W_out"
        )
    return inner


def _with_mlp(model: Model) -> DecoderLike:
    inner = decoder(model)
    if not inner.config.d_mlp:
        raise UserError("this model has no MLPs (d_mlp=0), its blocks are attention only")
    return inner


def _bias(linear: Any) -> Array:
    """The bias of a linear layer, zeros where it has none; with the layers' leading axis if the weight has it."""
    bias = getattr(linear, "bias", None)
    return jnp.zeros_like(linear.weight[...][..., 0, :]) if bias is None else bias[...]


def _head_weight(model: Model, name: str) -> Float[Array, "layer head d_model d_head"]:
    weight = by_layer(model, lambda block: getattr(block.attn, name).weight[...])
    heads = weight.reshape(*weight.shape[:2], -1, decoder(model).config.d_head)
    return jnp.swapaxes(heads, 1, 2)


def _head_bias(model: Model, name: str) -> Float[Array, "layer head d_head"]:
    bias = by_layer(model, lambda block: _bias(getattr(block.attn, name)))
    return bias.reshape(bias.shape[0], -1, decoder(model).config.d_head)


def _repeat_groups(model: Model, x: Float[Array, "layer kv_head ..."], grouped: bool) -> Float[Array, "layer head ..."]:
    config = decoder(model).config
    return x if grouped else jnp.repeat(x, config.n_heads // config.n_kv_heads, axis=1)
