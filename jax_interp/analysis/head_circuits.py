"""What a head does, by its weights: where it looks (QK) and what it then writes (OV) (Elhage et al. 2021).

All of these are of the weights as they stand. Norms' weights, and those of norms after attention, are not in them:
`processing.fold_layernorm` puts the former into the matrices first.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.factored_matrix import FactoredMatrix
from jax_interp.analysis.weights import W_E, W_K, W_O, W_Q, W_U, W_V
from jax_interp.core.layer import upcast


def OV(model: Any) -> FactoredMatrix:
    """`W_V W_O` of every head, `[layer, head, d_model, d_model]`: what it writes for what it reads, a row vector times
    this. `OV(model)[3, 1]` is one head's."""
    return FactoredMatrix(W_V(model), W_O(model))


def QK(model: Any) -> FactoredMatrix:
    """`W_Q W_Kᵀ` of every head, `[layer, head, d_model, d_model]`: the score of a query's vector (left) and a key's,
    before scaling. Rotary positions stand between the two and are not in it."""
    return FactoredMatrix(W_Q(model), jnp.swapaxes(W_K(model), -1, -2))


def full_OV(
    model: Any, layer: int, head: int, embedding: Float[Array, "vocab d_model"] | None = None
) -> FactoredMatrix:
    """`W_E W_V W_O W_U` of one head, `[vocab, vocab]`: what attending to a token (row) adds to the logits.

    Later layers do not read W_E, as the first MLP often rewrites it: `embedding` is what tokens are to the head
    instead, such as the stream after block 0 of every token by itself. The same in the functions below.
    """
    return _embedding(model, embedding) @ OV(model)[layer, head] @ W_U(model)


def full_QK(
    model: Any, layer: int, head: int, embedding: Float[Array, "vocab d_model"] | None = None
) -> FactoredMatrix:
    """`W_E W_Q W_Kᵀ W_Eᵀ` of one head, `[vocab, vocab]`: the score of a token as query (row) for another as key."""
    tokens = _embedding(model, embedding)
    return tokens @ QK(model)[layer, head] @ tokens.T


def eigen_copying_score(
    model: Any, embedding: Float[Array, "vocab d_model"] | None = None
) -> Float[Array, "layer head"]:
    """`Σ λ / Σ |λ|` over the eigenvalues of each head's full OV circuit: 1 where every direction of token space raises
    its own logits (copying), -1 where it lowers them (Elhage et al. 2021, "Detecting copying behavior").

    The eigenvalues are those of `W_O W_U W_E W_V`, d_head square.
    """
    inside = upcast(W_U(model)) @ upcast(_embedding(model, embedding))
    values = FactoredMatrix(jnp.einsum("de,lhek->lhdk", inside, upcast(W_V(model))), upcast(W_O(model))).eigenvalues
    return jnp.real(jnp.sum(values, axis=-1)) / jnp.sum(jnp.abs(values), axis=-1)


def _embedding(model: Any, given: Float[Array, "vocab d_model"] | None) -> Float[Array, "vocab d_model"]:
    return W_E(model) if given is None else given
