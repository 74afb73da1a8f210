"""Simplify attention heads: fold value biases, and factor the two weight products of each head by an SVD."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.linear import Linear
from jax_interp.models.attention import Attention
from jax_interp.models.decoder import Decoder
from jax_interp.models.processing.parts import (
    copied,
    each_block,
    ensure_bias,
    reconfigure,
    values_of,
    with_value,
)


def fold_value_bias(model: Decoder) -> Decoder:
    """Fold value biases into the output bias: `b_O <- b_O + Σ_head b_V W_O`. The logits stay the same.

    The rows of an attention pattern sum to one, so a value bias adds the same constant to `attn_out` for every pattern.
    A model without value biases is returned unchanged. Otherwise `config.out_bias` becomes True.

    Changes: `attn.v`, `attn.z` and `attn.result`, each by a constant. The effect of zero-ablating one of them changes
    too, because in the original model this ablation also removes the bias. `attn_out` stays the same.
    """
    model = copied(model, "fold_value_bias")
    if not model.config.qkv_bias:
        return model
    heads, kv_heads, d_head = model.config.n_heads, model.config.n_kv_heads, model.config.d_head

    def fold(attn: Attention) -> None:
        ensure_bias(attn.o)
        value = values_of(attn.v.bias).reshape(kv_heads, 1, d_head, 1)
        out = values_of(attn.o.weight).reshape(kv_heads, heads // kv_heads, d_head, -1)
        attn.o.bias = with_value(attn.o.bias, values_of(attn.o.bias) + jnp.sum(value * out, axis=(0, 1, 2)))
        attn.v.bias = with_value(attn.v.bias, jnp.zeros_like(values_of(attn.v.bias)))

    each_block(model, lambda block: fold(block.attn))
    reconfigure(model, out_bias=True)
    return model


def factor_attention(model: Decoder) -> Decoder:
    """Factor the two products of each head by their singular value decomposition. The logits stay the same.

    A head acts only through `W_Q W_Kᵀ` and `W_V W_O` (Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits"). Its weights are one of many factorisations of these products. This function chooses a canonical one:

    - From `[W_Q; b_Q] [W_K; b_K]ᵀ = U S Vᵀ`, with the biases as one more row, the new factors are `U √S` and `V √S`.
      Their columns are orthogonal, and the n-th columns of both factors have the same norm.
    - From `W_V W_O = U S Vᵀ` the new factors are `W_V <- U S` and `W_O <- Vᵀ`. The rows of `W_O` are orthonormal, so
      `z` has the same norm as the result of the head.

    Components are in order of descending singular value, with the signs of the SVD. Value biases are folded first
    (`fold_value_bias`). TransformerLens calls this `refactor_factored_attn_matrices`. The SVD is computed after a QR of
    each factor, so the time for a head grows as d_model · d_head².

    Changes: `attn.q`, `attn.k`, `attn.v` and `attn.z`, which are expressed in other bases. Scores, patterns and
    `attn.result` stay the same.

    Raises:
      UserError: the model has rotary positions or norms of queries and keys, which act between the factors of
        `W_Q W_Kᵀ`; or heads that share keys and values; or `d_head` above `d_model`.
    """
    model = copied(model, "factor_attention")
    config = model.config
    for applies, reason in (
        (config.positions == "rotary", "because rotary positions act between W_Q and W_K"),
        (config.qk_norm != "no", "because norms of queries and keys act between W_Q and W_K"),
        (config.n_kv_heads != config.n_heads, "because several query heads share keys and values"),
        (config.d_head > config.d_model, "because its heads are wider than the residual stream"),
    ):
        if applies:
            raise UserError(f"factor_attention: the heads of this model cannot be factored, {reason}")
    model = fold_value_bias(model)
    heads = config.n_heads

    def factor_head(attn: Attention) -> None:
        q, k = _with_bias_row(attn.q, heads), _with_bias_row(attn.k, heads)
        u, s, v = _svd(q, k)
        for linear, factor in ((attn.q, u * jnp.sqrt(s)), (attn.k, v * jnp.sqrt(s))):
            if linear.bias is not None:
                linear.bias = with_value(linear.bias, factor[:, -1].reshape(-1))
                factor = factor[:, :-1]
            linear.weight = with_value(linear.weight, _joined(factor))
        values = _split(values_of(attn.v.weight), heads)
        u, s, v = _svd(values, jnp.swapaxes(values_of(attn.o.weight).reshape(heads, -1, config.d_model), 1, 2))
        attn.v.weight = with_value(attn.v.weight, _joined(u * s))
        attn.o.weight = with_value(attn.o.weight, jnp.swapaxes(v, 1, 2).reshape(-1, config.d_model))

    each_block(model, lambda block: factor_head(block.attn))
    return model


def _with_bias_row(linear: Linear, heads: int) -> Float[Array, "head d_in d_head"]:
    """The matrix of each head. If there is a bias, it is the last row."""
    weight = values_of(linear.weight)
    if linear.bias is not None:
        weight = jnp.concatenate([weight, values_of(linear.bias)[None]])
    return _split(weight, heads)


def _split(weight: Float[Array, "d_in width"], heads: int) -> Float[Array, "head d_in d_head"]:
    """The matrix of each head."""
    return jnp.moveaxis(weight.reshape(weight.shape[0], heads, -1), 1, 0)


def _joined(parts: Float[Array, "head d_in d_head"]) -> Float[Array, "d_in width"]:
    """The inverse of `_split`."""
    return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1)


def _svd(
    a: Float[Array, "head m k"], b: Float[Array, "head n k"]
) -> tuple[Float[Array, "head m k"], Float[Array, "head 1 k"], Float[Array, "head n k"]]:
    """U, S, V of `a bᵀ`, without forming it."""
    (qa, ra), (qb, rb) = jnp.linalg.qr(a), jnp.linalg.qr(b)
    u, s, vt = jnp.linalg.svd(ra @ jnp.swapaxes(rb, 1, 2), full_matrices=False)
    return qa @ u, s[:, None, :], qb @ jnp.swapaxes(vt, 1, 2)
