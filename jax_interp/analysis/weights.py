"""A decoder's weights by their role, all layers in one array: TransformerLens's names and axes, in any layout.

These are the weights as they stand. What they mean to the residual stream is plain only where no norm's weight stands
between: `processing.fold_layernorm` puts those into the matrices first. Key/value heads that are shared by a group
of query heads are repeated, so that head h of every function is query head h; `grouped=True` has them once.
Missing biases are zeros. A model under surgery has the weights of the model inside.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.models.decoder import Decoder
from jax_interp.surgery import blocks_as_pytree
from jax_interp.surgery.taps import Tapped


def decoder(model: Any) -> Decoder:
    """The decoder inside a nest of surgeries. Raises `UserError` for what is none."""
    while isinstance(model, Tapped):
        model = model.model
    if not isinstance(model, Decoder):
        raise UserError(
            f"this analysis takes weights by their role and so needs a jax_interp Decoder, got {type(model).__name__}; "
            "what needs activations only takes arrays"
        )
    return model


def by_layer(model: Any, part: Callable[[Any], Any]) -> Any:
    """`part(block)` of every block, an array or a module, its leaves with a leading layer axis."""
    try:
        return blocks_as_pytree(decoder(model), part)
    except AttributeError as error:
        raise UserError(
            f"a part of this model has no such weight ({error}): something else was put in its place"
        ) from error


def W_E(model: Any) -> Float[Array, "vocab d_model"]:
    """The embedding. What enters the stream is this times `config.embed_scale`."""
    return decoder(model).embed.weight[...]


def W_pos(model: Any) -> Float[Array, "n_ctx d_model"]:
    """The learned positions. Raises `UserError` for other kinds."""
    inner = decoder(model)
    if inner.pos_embed is None:
        raise UserError(f"this model learns no position vectors (positions={inner.config.positions!r})")
    return inner.pos_embed.weight[...][inner.config.position_offset :]


def W_U(model: Any) -> Float[Array, "d_model vocab"]:
    """The unembedding; the embedding's transpose where they are tied."""
    inner = decoder(model)
    return inner.embed.weight[...].T if inner.unembed is None else inner.unembed.weight[...]


def b_U(model: Any) -> Float[Array, "vocab"]:
    inner = decoder(model)
    if inner.unembed is None or inner.unembed.bias is None:
        return jnp.zeros(inner.config.vocab_size, W_U(inner).dtype)
    return inner.unembed.bias[...]


def W_Q(model: Any) -> Float[Array, "layer head d_model d_head"]:
    return _read(model, "q")


def W_K(model: Any, *, grouped: bool = False) -> Float[Array, "layer head d_model d_head"]:
    return _expanded(model, _read(model, "k"), grouped)


def W_V(model: Any, *, grouped: bool = False) -> Float[Array, "layer head d_model d_head"]:
    return _expanded(model, _read(model, "v"), grouped)


def W_O(model: Any) -> Float[Array, "layer head d_head d_model"]:
    weight = by_layer(model, lambda block: block.attn.o.weight[...])
    return weight.reshape(weight.shape[0], -1, decoder(model).config.d_head, weight.shape[-1])


def b_Q(model: Any) -> Float[Array, "layer head d_head"]:
    return _read_bias(model, "q")


def b_K(model: Any, *, grouped: bool = False) -> Float[Array, "layer head d_head"]:
    return _expanded(model, _read_bias(model, "k"), grouped)


def b_V(model: Any, *, grouped: bool = False) -> Float[Array, "layer head d_head"]:
    return _expanded(model, _read_bias(model, "v"), grouped)


def b_O(model: Any) -> Float[Array, "layer d_model"]:
    return by_layer(model, lambda block: _bias(block.attn.o))


def W_in(model: Any) -> Float[Array, "layer d_model d_mlp"]:
    """What neurons read the stream by: `up`. Of a mixture of experts, `[layer, expert, d_model, d_mlp]`, here and in
    `W_gate` and `W_out` (its axes swapped)."""
    return by_layer(_with_mlp(model), lambda block: block.mlp.up.weight[...])


def W_gate(model: Any) -> Float[Array, "layer d_model d_mlp"]:
    """The matrix before the activation of a gated MLP."""
    if not decoder(model).config.gated_mlp:
        raise UserError("this model's MLPs are not gated: there is W_in alone")
    return by_layer(_with_mlp(model), lambda block: block.mlp.gate.weight[...])


def W_out(model: Any) -> Float[Array, "layer d_mlp d_model"]:
    return by_layer(_with_mlp(model), lambda block: block.mlp.down.weight[...])


def b_in(model: Any) -> Float[Array, "layer d_mlp"]:
    return by_layer(dense(model, "b_in"), lambda block: _bias(block.mlp.up))


def b_out(model: Any) -> Float[Array, "layer d_model"]:
    return by_layer(dense(model, "b_out"), lambda block: _bias(block.mlp.down))


def dense(model: Any, what: str) -> Decoder:
    """The decoder, if its MLPs are of one set of neurons each. Raises `UserError` for experts, saying `what`."""
    inner = _with_mlp(model)
    if inner.config.n_experts:
        raise UserError(
            f"{what} is of a layer's neurons, and this model has {inner.config.n_experts} experts in each, of which "
            f"a token sees {inner.config.experts_per_token}: take their weights with W_in, W_gate and W_out"
        )
    return inner


def _with_mlp(model: Any) -> Decoder:
    inner = decoder(model)
    if not inner.config.d_mlp:
        raise UserError("this model has no MLPs (d_mlp=0), its blocks are attention only")
    return inner


def _bias(linear: Any) -> Array:
    """Zeros where there is none, of the layers' leading axis too if the weight has one."""
    bias = getattr(linear, "bias", None)
    return jnp.zeros_like(linear.weight[...][..., 0, :]) if bias is None else bias[...]


def _read(model: Any, name: str) -> Float[Array, "layer head d_model d_head"]:
    weight = by_layer(model, lambda block: getattr(block.attn, name).weight[...])
    heads = weight.reshape(*weight.shape[:2], -1, decoder(model).config.d_head)
    return jnp.swapaxes(heads, 1, 2)


def _read_bias(model: Any, name: str) -> Float[Array, "layer head d_head"]:
    bias = by_layer(model, lambda block: _bias(getattr(block.attn, name)))
    return bias.reshape(bias.shape[0], -1, decoder(model).config.d_head)


def _expanded(model: Any, x: Float[Array, "layer kv_head ..."], grouped: bool) -> Float[Array, "layer head ..."]:
    config = decoder(model).config
    return x if grouped else jnp.repeat(x, config.n_heads // config.n_kv_heads, axis=1)
