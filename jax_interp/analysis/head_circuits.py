"""The circuits of a head, computed from its weights: where it attends (QK) and what it writes (OV) (Elhage et al.
2021).

The circuits use the raw weights, without the weights of norms. `processing.fold_layernorm` multiplies the weights of
norms before attention into the matrices. Norms after attention are never included.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.factored_matrix import FactoredMatrix
from jax_interp.analysis.weights import W_E, W_K, W_O, W_Q, W_U, W_V
from jax_interp.core.layer import upcast
from jax_interp.surgery import Model


def OV(model: Model) -> FactoredMatrix:
    """`W_V W_O` of every head. A vector that the head reads, times this matrix, is what the head writes.

    Returns:
      `[layer, head, d_model, d_model]`. `OV(model)[3, 1]` is one head's.
    """
    return FactoredMatrix(W_V(model), W_O(model))


def QK(model: Model) -> FactoredMatrix:
    """`W_Q W_Kᵀ` of every head. It gives the unscaled score of a query's vector (left) and a key's vector (right).

    Rotary positions act between the two matrices and are not in the product.

    Returns:
      `[layer, head, d_model, d_model]`.
    """
    return FactoredMatrix(W_Q(model), jnp.swapaxes(W_K(model), -1, -2))


def full_OV(
    model: Model, layer: int, head: int, embedding: Float[Array, "vocab d_model"] | None = None
) -> FactoredMatrix:
    """`W_E W_V W_O W_U` of one head: what attending to a token (row) adds to the logits (columns).

    Args:
      model: a decoder, with or without surgery.
      layer: the head's layer.
      head: the head.
      embedding: the vector that the head reads for each token; default W_E. Block 0 often changes these vectors much,
        so for later layers give the stream after block 0, computed for every token alone.

    Returns:
      `[vocab, vocab]`.
    """
    return _embedding(model, embedding) @ OV(model)[layer, head] @ W_U(model)


def full_QK(
    model: Model, layer: int, head: int, embedding: Float[Array, "vocab d_model"] | None = None
) -> FactoredMatrix:
    """`W_E W_Q W_Kᵀ W_Eᵀ` of one head: the score between a query token (row) and a key token (column).

    Args:
      model: a decoder, with or without surgery.
      layer: the head's layer.
      head: the head.
      embedding: see `full_OV`.

    Returns:
      `[vocab, vocab]`.
    """
    tokens = _embedding(model, embedding)
    return tokens @ QK(model)[layer, head] @ tokens.T


def eigen_copying_score(
    model: Model, embedding: Float[Array, "vocab d_model"] | None = None
) -> Float[Array, "layer head"]:
    """`Σ λ / Σ |λ|` over the eigenvalues of each head's full OV circuit (Elhage et al. 2021, "Copying behavior").

    It is NaN for a head that writes nothing.

    The score is 1 if every direction of token space raises its own logits (copying), and -1 if every direction lowers
    them. The eigenvalues are those of the small matrix `W_O W_U W_E W_V`, `[d_head, d_head]`.

    Args:
      model: a decoder, with or without surgery.
      embedding: see `full_OV`.
    """
    inside = upcast(W_U(model)) @ upcast(_embedding(model, embedding))
    values = FactoredMatrix(jnp.einsum("de,lhek->lhdk", inside, upcast(W_V(model))), upcast(W_O(model))).eigenvalues
    return jnp.real(jnp.sum(values, axis=-1)) / jnp.sum(jnp.abs(values), axis=-1)


def _embedding(model: Model, given: Float[Array, "vocab d_model"] | None) -> Float[Array, "vocab d_model"]:
    return W_E(model) if given is None else given
