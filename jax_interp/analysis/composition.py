"""Composition scores: do heads read what earlier heads write? (Elhage et al. 2021, "Virtual attention heads").

The score is `‖W_OV M‖ / (‖W_OV‖ ‖M‖)` in Frobenius norms. W_OV is the OV circuit of the earlier head. M belongs to the
later head: it is the QK circuit ("Q", the output is read by queries), its transpose ("K"), or the OV circuit ("V").
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.analysis.factored_matrix import FactoredMatrix
from jax_interp.analysis.head_circuits import OV, QK
from jax_interp.analysis.weights import decoder
from jax_interp.core.errors import UserError
from jax_interp.surgery import Model

Mode = Literal["Q", "K", "V"]


def composition_scores(left: FactoredMatrix, right: FactoredMatrix) -> Float[Array, "*left *right"]:
    """`‖left right‖ / (‖left‖ ‖right‖)` of every pair of matrices; 0 if one of them is zero.

    Rotations do not change the norms, so the outer side of each matrix is first reduced to the inner dimension. Only
    one row of pairs is in memory at a time.

    Args:
      left: matrices `[*left, d, e]`.
      right: matrices `[*right, e, f]`.

    Returns:
      Scores, with the leading axes of `left` first.

    Raises:
      UserError: the shapes do not allow the product.
    """
    if left.rdim != right.ldim:
        raise UserError(f"matrices of shapes {left.shape} and {right.shape} cannot be multiplied")
    of_left, of_right = left.reduced_left(), right.T.reduced_left()
    a = of_left.reshape(-1, *of_left.shape[-2:])
    b = jnp.swapaxes(of_right.reshape(-1, *of_right.shape[-2:]), -1, -2)
    a_norm, b_norm = jnp.linalg.norm(a, axis=(-2, -1)), jnp.linalg.norm(b, axis=(-2, -1))

    def row(one: Array) -> Array:
        return jnp.linalg.norm(jnp.einsum("ij,njk->nik", one, b), axis=(-2, -1))

    sizes = a_norm[:, None] * b_norm[None]
    scores = jax.lax.map(row, a) / jnp.where(sizes > 0, sizes, jnp.ones_like(sizes))
    return scores.reshape(*left.shape[:-2], *right.shape[:-2])


def all_composition_scores(model: Model, mode: Mode) -> Float[Array, "layer head later_layer later_head"]:
    """Composition scores of all pairs of heads; zero unless the second head is in a later layer.

    Compare with `composition_baseline`: unrelated heads do not score 0.

    Args:
      model: a decoder, with or without surgery.
      mode: what the later head reads with: queries ("Q"), keys ("K") or values ("V").

    Returns:
      `scores[l1, h1, l2, h2]`: how much head h2 of layer l2 reads of what head h1 of layer l1 writes.

    Raises:
      UserError: an unknown mode.
    """
    n_layers = decoder(model).config.n_layers
    scores = composition_scores(OV(model), _reader(model, mode))
    layer = jnp.arange(n_layers)
    later = (layer[:, None] < layer[None, :]).reshape(n_layers, 1, n_layers, 1)
    return jnp.where(later, scores, jnp.zeros_like(scores))


def composition_baseline(
    model: Model, mode: Mode, key: Key[Array, ""], samples: int = 64
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The composition score of random heads: Gaussian factors of this model's shapes.

    Args:
      model: the model whose shapes are used.
      mode: see `all_composition_scores`.
      key: random key.
      samples: number of pairs of heads.

    Returns:
      Mean and standard deviation of the score.

    Raises:
      UserError: an unknown mode, or no samples.
    """
    if samples < 1:
        raise UserError(f"samples={samples}: at least 1")
    shapes = [
        jax.ShapeDtypeStruct(x.shape[-2:], jnp.float32) for m in (OV(model), _reader(model, mode)) for x in m.pair
    ]

    def sample(key: Array) -> Array:
        keys = jax.random.split(key, len(shapes))
        a, b, c, d = (jax.random.normal(k, shape.shape, shape.dtype) for k, shape in zip(keys, shapes, strict=True))
        return composition_scores(FactoredMatrix(a, b), FactoredMatrix(c, d))

    scores = jax.lax.map(sample, jax.random.split(key, samples))
    return jnp.mean(scores), jnp.std(scores)


def _reader(model: Model, mode: Mode) -> FactoredMatrix:
    if mode not in get_args(Mode):
        raise UserError(f"mode={mode!r}: choose from {', '.join(get_args(Mode))}")
    return OV(model) if mode == "V" else QK(model) if mode == "Q" else QK(model).T
