"""Attention heads written another way: value biases in the output's, and each head's two products by their SVD."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.models.attention import Attention
from jax_interp.models.decoder import Decoder
from jax_interp.models.processing.parts import copy, each_block, put, reconfigure, values_of, with_bias


def fold_value_bias(model: Decoder) -> Decoder:
    """The same logits with value biases zero: `b_O <- b_O + Σ_head b_V W_O`.

    A pattern's rows sum to one, so that a value's bias reaches `attn_out` as a constant of the layer whatever the
    pattern is. A model without biases of values comes back as it is; `config.out_bias` becomes True otherwise.

    Changes: `attn.v`, `attn.z` and `attn.result`, by a constant each, and with them what ablating one to zero does:
    in the raw model zero takes the bias away too. `attn_out` stays.
    """
    model = copy(model, "fold_value_bias")
    if not model.config.qkv_bias:
        return model
    heads, kv_heads, d_head = model.config.n_heads, model.config.n_kv_heads, model.config.d_head

    def fold(attn: Attention) -> None:
        with_bias(attn.o)
        value = values_of(attn.v.bias).reshape(kv_heads, 1, d_head, 1)
        out = values_of(attn.o.weight).reshape(kv_heads, heads // kv_heads, d_head, -1)
        attn.o.bias = put(attn.o.bias, values_of(attn.o.bias) + jnp.sum(value * out, axis=(0, 1, 2)))
        attn.v.bias = put(attn.v.bias, jnp.zeros_like(values_of(attn.v.bias)))

    each_block(model, lambda block: fold(block.attn))
    reconfigure(model, out_bias=True)
    return model


def factor_attention(model: Decoder) -> Decoder:
    """The same logits with each head's two products factored by their singular value decomposition.

    A head acts by `W_Q W_Kᵀ` and `W_V W_O` alone (Elhage et al. 2021, "A Mathematical Framework for Transformer
    Circuits"), of which it has one of many factorisations. With `[W_Q; b_Q] [W_K; b_K]ᵀ = U S Vᵀ`, biases as one row
    more, the new ones are `U √S` and `V √S`: orthogonal columns, the n-th of the same norm in both. With
    `W_V W_O = U S Vᵀ`, `W_V <- U S` and `W_O <- Vᵀ`: orthonormal rows, so that `z` has the norm of the head's result.
    Components come in order of falling singular value, signs as the SVD gives them. Value biases are folded
    (`fold_value_bias`). It is TransformerLens's `refactor_factored_attn_matrices`.

    Changes: `attn.q`, `attn.k`, `attn.v` and `attn.z`, all by other bases of their heads; scores, patterns and
    `attn.result` stay. Factors from `W[d_model, d_head]` by QR first: time is d_model · d_head² for a head.

    Raises `UserError` for rotary positions and q/k norms, which act between the factors of `W_Q W_Kᵀ`, for grouped
    key/value heads, of which several queries share one, and for `d_head` above `d_model`.
    """
    model = copy(model, "factor_attention")
    config = model.config
    for stands, reason in (
        (config.positions == "rotary", "rotary positions turn queries and keys, and W_Q W_K^T is another at each pair"),
        (config.qk_norm != "no", "norms of queries and keys stand between W_Q and W_K"),
        (config.n_kv_heads != config.n_heads, "query heads share keys and values, which cannot be of one's own basis"),
        (config.d_head > config.d_model, "heads are wider than the stream"),
    ):
        if stands:
            raise UserError(f"factor_attention: this model's heads cannot be factored, {reason}")
    model = fold_value_bias(model)
    heads = config.n_heads

    def factor(attn: Attention) -> None:
        q, k = _columns(attn.q, heads), _columns(attn.k, heads)
        u, s, v = _svd(q, k)
        for linear, even in ((attn.q, u * jnp.sqrt(s)), (attn.k, v * jnp.sqrt(s))):
            if linear.bias is not None:
                linear.bias = put(linear.bias, even[:, -1].reshape(-1))
                even = even[:, :-1]
            linear.weight = put(linear.weight, _side_by_side(even))
        values = _split(values_of(attn.v.weight), heads)
        u, s, v = _svd(values, jnp.swapaxes(values_of(attn.o.weight).reshape(heads, -1, config.d_model), 1, 2))
        attn.v.weight = put(attn.v.weight, _side_by_side(u * s))
        attn.o.weight = put(attn.o.weight, jnp.swapaxes(v, 1, 2).reshape(-1, config.d_model))

    each_block(model, lambda block: factor(block.attn))
    return model


def _columns(linear, heads: int) -> Float[Array, "head d_in d_head"]:
    """Each head's matrix, its bias as the last row where it has one."""
    weight = values_of(linear.weight)
    if linear.bias is not None:
        weight = jnp.concatenate([weight, values_of(linear.bias)[None]])
    return _split(weight, heads)


def _split(weight: Float[Array, "d_in width"], heads: int) -> Float[Array, "head d_in d_head"]:
    return jnp.moveaxis(weight.reshape(weight.shape[0], heads, -1), 1, 0)


def _side_by_side(parts: Float[Array, "head d_in d_head"]) -> Float[Array, "d_in width"]:
    return jnp.moveaxis(parts, 0, 1).reshape(parts.shape[1], -1)


def _svd(
    a: Float[Array, "head m k"], b: Float[Array, "head n k"]
) -> tuple[Float[Array, "head m k"], Float[Array, "head 1 k"], Float[Array, "head n k"]]:
    """U, S, V of `a bᵀ`, without forming it."""
    (qa, ra), (qb, rb) = jnp.linalg.qr(a), jnp.linalg.qr(b)
    u, s, vt = jnp.linalg.svd(ra @ jnp.swapaxes(rb, 1, 2), full_matrices=False)
    return qa @ u, s[:, None, :], qb @ jnp.swapaxes(vt, 1, 2)
