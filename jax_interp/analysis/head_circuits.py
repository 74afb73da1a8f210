"""What a head does, by its weights: where it looks (QK) and what it then writes (OV) (Elhage et al. 2021).

These are circuits of the raw weights. The weights of the norms before attention are not in them;
`processing.fold_layernorm` multiplies those into the matrices. Norms after attention are never in them.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.factored_matrix import FactoredMatrix
from jax_interp.analysis.weights import W_E, W_K, W_O, W_Q, W_U, W_V
from jax_interp.core.layer import upcast
from jax_interp.surgery import Model


def OV(model: Model) -> FactoredMatrix:
    """`W_V W_O` of every head: what the head writes for what it reads, a row vector times this matrix.

    Returns:
      `[layer, head, d_model, d_model]`. `OV(model)[3, 1]` is one head's.
    """
    return FactoredMatrix(W_V(model), W_O(model))


def QK(model: Model) -> FactoredMatrix:
    """`W_Q W_Kᵀ` of every head: the score of a query's vector (left) and a key's vector (right), before scaling.

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
      model: a decoder, also under surgery.
      layer: the head's layer.
      head: the head.
      embedding: the vector by which the head reads each token; default W_E. The first MLP often rewrites W_E, so for
        later layers give the stream after block 0 of every token by itself.

    Returns:
      `[vocab, vocab]`.
    """
    return _embedding(model, embedding) @ OV(model)[layer, head] @ W_U(model)


def full_QK(
    model: Model, layer: int, head: int, embedding: Float[Array, "vocab d_model"] | None = None
) -> FactoredMatrix:
    """`W_E W_Q W_Kᵀ W_Eᵀ` of one head: the score of a token as query (row) for another as key (column).

    Args:
      model: a decoder, also under surgery.
      layer: the head's layer.
      head: the head.
      embedding: as in `full_OV`.

    Returns:
      `[vocab, vocab]`.
    """
    tokens = _embedding(model, embedding)
    return tokens @ QK(model)[layer, head] @ tokens.T


def eigen_copying_score(
    model: Model, embedding: Float[Array, "vocab d_model"] | None = None
) -> Float[Array, "layer head"]:
    """`Σ λ / Σ |λ|` over the eigenvalues of each head's full OV circuit (Elhage et al. 2021, "Copying behavior").

    1 where every direction of token space raises its own logits (copying), -1 where each lowers them. The eigenvalues
    are computed as those of `W_O W_U W_E W_V`, which is d_head square.

    Args:
      model: a decoder, also under surgery.
      embedding: as in `full_OV`.
    """
    inside = upcast(W_U(model)) @ upcast(_embedding(model, embedding))
    values = FactoredMatrix(jnp.einsum("de,lhek->lhdk", inside, upcast(W_V(model))), upcast(W_O(model))).eigenvalues
    return jnp.real(jnp.sum(values, axis=-1)) / jnp.sum(jnp.abs(values), axis=-1)


def _embedding(model: Model, given: Float[Array, "vocab d_model"] | None) -> Float[Array, "vocab d_model"]:
    return W_E(model) if given is None else given
