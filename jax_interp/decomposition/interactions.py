"""Query-key interactions: an attention logit as a sum over pairs of subcomponents.

    logit(i, j) = scale Σ_{c, c'} (x_i V_q)_c  U_q[c]ᵀ R_{j-i} U_k[c']  (V_kᵀ x_j)_{c'}      for each head

The sum over all pairs equals the logit if V U is the whole matrix (`with_delta` adds Δ as more components) and queries
and keys have no bias and no norm. Rotary positions are linear, so each component is rotated in the same way.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.decomposition.components import Components

Rotate = Callable[[Float[Array, "batch pos head d_head"]], Float[Array, "batch pos head d_head"]]


def pair_interactions(
    queries: Components,
    keys: Components,
    x: Float[Array, "batch pos d_model"],
    *,
    n_heads: int,
    scale: float,
    rotate: Rotate = lambda x: x,
    kv_heads: int | None = None,
    query: int = -1,
) -> Float[Array, "batch head C_q key C_k"]:
    """Interactions of one query position with every key, in units of the logit before the softmax (VPD 2026).

    Args:
      queries, keys: the components of one layer's query and key matrices.
      x: the input of both matrices.
      n_heads: the number of query heads.
      scale: the factor of the logit, usually 1/√d_head.
      rotate: applies the model's rotary positions to `[batch, pos, head, d_head]`.
      kv_heads: the number of key heads; None: `n_heads`.
      query: the query's position.

    Returns:
      Interactions. Their sum over both component axes is the attention logit of the components.

    Raises:
      UserError: the components have a layer axis, the heads do not fit, or the query position does not exist.
    """
    kv_heads = _checked_heads(queries, keys, n_heads, kv_heads)
    if not -x.shape[1] <= query < x.shape[1]:
        raise UserError(f"query={query}: x has {x.shape[1]} positions")
    q = _parts(queries, x, n_heads, rotate)[:, query % x.shape[1]]  # batch C head d_head
    k = _parts(keys, x, kv_heads, rotate)  # batch pos C head d_head
    k = jnp.repeat(k, n_heads // kv_heads, axis=3)
    return jnp.asarray(scale, x.dtype) * jnp.einsum("bcnh,bpdnh->bncpd", q, k)


def static_interactions(
    queries: Components,
    keys: Components,
    q_sign: Float[Array, " C_q"],
    k_sign: Float[Array, " C_k"],
    *,
    n_heads: int,
    rotate_by: Callable[[Float[Array, "C head d_head"], int], Float[Array, "C head d_head"]],
    offsets: int,
    kv_heads: int | None = None,
) -> Float[Array, "head C_q C_k offset"]:
    """Data-independent interactions: `(sign_q ‖V_q‖ U_q)ᵀ R_τ (sign_k ‖V_k‖ U_k)`, standardised over all pairs and
    offsets of a head (VPD 2026).

    Args:
      queries, keys: the components of one layer's query and key matrices.
      q_sign, k_sign: the signs of the components' mean activations.
      n_heads: the number of query heads.
      rotate_by: `rotate_by(u, τ)` rotates vectors by τ positions.
      offsets: the number of offsets; τ goes from 0 to offsets - 1.
      kv_heads: the number of key heads; None: `n_heads`.

    Raises:
      UserError: the components have a layer axis, or the heads do not fit.
    """
    kv_heads = _checked_heads(queries, keys, n_heads, kv_heads)

    def scaled(parts: Components, sign: Array, heads: int) -> Array:
        _check_one_layer(parts)
        size = sign * jnp.linalg.norm(parts.V, axis=0)
        return (size[:, None] * parts.U).reshape(parts.C, heads, -1)

    q, k = scaled(queries, q_sign, n_heads), scaled(keys, k_sign, kv_heads)
    turned = jnp.stack([rotate_by(q, offset) for offset in range(offsets)])
    found = jnp.einsum("tcnh,dnh->ncdt", turned, jnp.repeat(k, n_heads // kv_heads, axis=1))
    axes = (1, 2, 3)
    spread = jnp.std(found, axes, keepdims=True)
    # A head whose interactions are all equal (weights of zero) gets 0.
    return (found - jnp.mean(found, axes, keepdims=True)) / jnp.where(spread > 0, spread, jnp.ones_like(spread))


def with_delta(parts: Components, weight: Float[Array, "d_in d_out"]) -> Components:
    """The components with Δ = W - V U as more components, `Σ_i e_i Δ[i]`. Their sum is W."""
    rest = weight - parts.product()
    return Components(
        jnp.concatenate([parts.V, jnp.eye(weight.shape[0], dtype=parts.V.dtype)], axis=1),
        jnp.concatenate([parts.U, rest.astype(parts.U.dtype)]),
    )


def _parts(parts: Components, x: Array, heads: int, rotate: Rotate) -> Float[Array, "batch pos C head d_head"]:
    """The contributions of each component to queries or keys, rotated."""
    _check_one_layer(parts)
    U = parts.U.reshape(parts.C, heads, -1).astype(x.dtype)
    made = jnp.einsum("bpi,ic,cnh->bpcnh", x, parts.V.astype(x.dtype), U)
    batch, pos, C, n, h = made.shape
    turned = rotate(jnp.moveaxis(made, 2, 1).reshape(batch * C, pos, n, h))
    return jnp.moveaxis(turned.reshape(batch, C, pos, n, h), 1, 2)


def _checked_heads(queries: Components, keys: Components, n_heads: int, kv_heads: int | None) -> int:
    """The number of key heads. Raises UserError if the heads do not divide the widths and each other."""
    kv_heads = n_heads if kv_heads is None else kv_heads
    widths = queries.U.shape[-1], keys.U.shape[-1]
    fit = min(n_heads, kv_heads) >= 1 and not n_heads % kv_heads and not widths[0] % n_heads
    if not fit or widths[0] * kv_heads != widths[1] * n_heads:
        raise UserError(
            f"{n_heads} query heads and {kv_heads} key heads do not fit queries of width {widths[0]} and keys of width "
            f"{widths[1]}: each head has the same width, and the key heads divide the query heads"
        )
    return kv_heads


def _check_one_layer(parts: Components) -> None:
    if parts.V.ndim != 2:
        raise UserError(f"interactions are of one layer's components, got V of shape {parts.V.shape}: index the layer")
