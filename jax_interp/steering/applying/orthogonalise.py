"""Weight orthogonalisation: a model that cannot write a direction (Arditi et al. 2024, arXiv:2406.11717).

    model_without = orthogonalised(model, r)                             new weights: W - W r̂ r̂ᵀ
    edit(model, at(writes_of(model), ProjectOut(r)))                     the same function, by edits

Everything that writes to the residual stream loses its part along the direction: the embeddings of tokens and
positions, the outputs of attention, MLPs and experts, and their biases. The stream then has no part along the direction
in any layer.
"""

from __future__ import annotations

import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.linear import Embedding, Linear
from jax_interp.models import Decoder
from jax_interp.models.block import Block
from jax_interp.models.moe import Experts
from jax_interp.models.processing.parts import copied, each_block, untie, with_value


def writes_of(model: Decoder) -> tuple[str, ...]:
    """The addresses of all values that the model adds to the residual stream."""
    config = model.config
    positions = ("pos_embed",) if config.positions in ("learned", "sinusoidal") else ()
    return ("embed", *positions, "blocks.*.attn_out", *(("blocks.*.mlp_out",) if config.d_mlp else ()))


def orthogonalised(model: Decoder, directions: Float[Array, " d"] | Float[Array, "k d"]) -> Decoder:
    """The model whose weights do not write some directions to the residual stream.

    It computes what the model computes under `ProjectOut(directions)` at every address of `writes_of(model)`. A tied
    embedding is untied, because the unembedding must not change. Weights in half precision are rounded after the
    projection, so that a part of the size of their rounding remains.

    Args:
      model: a decoder. It stays as it is, and shares the unchanged arrays with the result.
      directions: a direction, or several linearly independent ones. Their norms have no effect.

    Returns:
      The new model.

    Raises:
      UserError: the model has norms after attention and MLP, or sinusoidal positions; a part was replaced; or the
        directions are zero, not finite, linearly dependent, or of another width.

    Example:
        without = orthogonalised(model, refusal_direction)
        save(without, "without-refusal")
    """
    new = copied(model, "orthogonalised")
    _check(model)
    basis = _basis(directions, model.config.d_model)
    untie(new)
    _project(new.embed, basis, Embedding)
    if new.pos_embed is not None:
        _project(new.pos_embed, basis, Embedding)

    def change(block: Block) -> None:
        _project(block.attn.o, basis, Linear)
        if block.mlp is not None:
            _project(block.mlp.down, basis, (Linear, Experts))

    each_block(new, change)
    return new


def _check(model: Decoder) -> None:
    if model.config.norm_places != "before":
        raise UserError(
            "this model has norms after attention and MLP. What a norm writes is not a linear map of the weights, so "
            "no change of the weights is the ablation. Use edits: at(writes_of(model), ProjectOut(direction))"
        )
    if model.config.positions == "sinusoidal":
        raise UserError(
            "sinusoidal positions are computed, and have no weights to change. Use edits: at(writes_of(model), "
            "ProjectOut(direction))"
        )


def _basis(directions: Array, d_model: int) -> Float[Array, "k d"]:
    """Orthonormal directions, in at least float32."""
    v = jnp.atleast_2d(upcast(jnp.asarray(directions)))
    if v.ndim != 2 or v.shape[1] != d_model or not 0 < len(v) < d_model:
        raise UserError(
            f"directions have shape [{d_model}] or [k, {d_model}] in this model, got {jnp.shape(directions)}"
        )
    if not isinstance(v, jax.core.Tracer):
        exact = np.asarray(v, np.float64)
        size = np.linalg.norm(exact, axis=1, keepdims=True)
        if not np.isfinite(exact).all() or not (size > 0).all():
            raise UserError("a direction is zero, or has entries that are NaN or infinite")
        if np.linalg.matrix_rank(exact / size) < len(exact):
            raise UserError(f"the {len(exact)} directions are linearly dependent: leave out those that add nothing")
    return jnp.linalg.qr((v / jnp.linalg.norm(v, axis=1, keepdims=True)).T)[0].T


def _project(part: nnx.Module, basis: Float[Array, "k d"], kinds: type | tuple[type, ...]) -> None:
    """Take the directions out of what a part writes: the last axis of its weight and bias."""
    if not isinstance(part, kinds):
        raise UserError(f"the model has a {type(part).__name__} that writes to the stream: merge it into weights first")
    for name in ("weight", "bias"):
        if (parameter := getattr(part, name, None)) is not None:
            setattr(part, name, with_value(parameter, _without(upcast(parameter[...]), basis)))


def _without(w: Float[Array, "... d"], basis: Float[Array, "k d"]) -> Float[Array, "... d"]:
    for unit in basis.astype(w.dtype):
        row = jnp.broadcast_to(unit, w.shape)
        w = w - jnp.sum(w * row, axis=-1, keepdims=True) * row
    return w
