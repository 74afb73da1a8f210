"""Singular vectors of heads and MLPs, read in the vocabulary (Millidge & Black 2022)."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.analysis.head_circuits import OV
from jax_interp.analysis.norm_at_scale import norm_weight
from jax_interp.analysis.weights import W_U, W_gate, W_in, W_out, decoder, with_dense_mlps
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Model

Kind = Literal["OV", "w_in", "w_gate", "w_out"]


@register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SingularVectors:
    """The leading singular directions of a matrix, on the side of the residual stream. Their signs have no meaning."""

    values: Float[Array, "vector"]
    """Singular values, largest first."""
    vectors: Float[Array, "vector d_model"]
    logits: Float[Array, "vector vocab"]
    """Each vector times the unembedding."""


def singular_vectors(
    model: Model, kind: Kind, layer: int, head: int | None = None, *, num_vectors: int = 10
) -> SingularVectors:
    """The leading singular vectors of one matrix, and their logits; `SVDInterpreter` in TransformerLens.

    Args:
      model: a decoder, with or without surgery.
      kind: "OV": what a head writes. "w_in" or "w_gate": what the neurons of an MLP read, times the weight of the norm
        before the MLP. "w_out": what the neurons write.
      layer: the layer.
      head: the head, for "OV".
      num_vectors: the number of vectors.

    Raises:
      UserError: the kind, layer or head does not exist; or MLPs are mixtures of experts or not gated.

    Example:

        found = singular_vectors(model, "OV", layer=2, head=3)
        top_tokens(found.logits, tokenizer)
    """
    if kind not in get_args(Kind):
        raise UserError(f"kind={kind!r}: choose from {', '.join(get_args(Kind))}")
    if num_vectors < 1:
        raise UserError(f"num_vectors={num_vectors}: at least 1")
    config = decoder(model).config
    if not 0 <= layer < config.n_layers:
        raise UserError(f"layer={layer}: this model has layers 0 to {config.n_layers - 1}")
    if (kind == "OV") != (head is not None) or (head is not None and not 0 <= head < config.n_heads):
        raise UserError(
            f"kind='OV' takes a head from 0 to {config.n_heads - 1}, and no other kind takes one; got head={head}"
        )
    if kind == "OV":
        _, s, v = OV(model)[layer, head].svd()
        rows = v.T
    else:
        with_dense_mlps(model, f"kind={kind!r}")
        if kind == "w_out":
            matrix = upcast(W_out(model)[layer])
        else:
            matrix = upcast((W_in if kind == "w_in" else W_gate)(model)[layer]).T
            scale = norm_weight(model, layer, mlp_input=True)
            matrix = matrix if scale is None else matrix * scale[None]
        _, s, rows = jnp.linalg.svd(matrix, full_matrices=False)
    rows = rows[:num_vectors]
    return SingularVectors(s[:num_vectors], rows, rows @ upcast(W_U(model)))
