"""Fold constant scales, shifts and norms of a published format into the weights of a dictionary.

Every function returns a dictionary that computes the same function of other units. They work on NumPy and JAX arrays,
also on arrays on a mesh.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jax_interp.core.errors import UserError
from jax_interp.dictionaries.forms.dictionary import Dictionary

Factor = float | Float[Array, ""] | Float[Array, " d"]


def fold_input_scale(dictionary: Dictionary, scale: Factor, output_scale: Factor | None = None) -> Dictionary:
    """A dictionary for raw activations, from one that was trained on activations times a constant.

    Args:
      dictionary: reads `scale * x`, and writes `output_scale * y`.
      scale: the factor of the input: one number, or one per coordinate.
      output_scale: the factor of the output. None: `scale`, as for an SAE.

    Returns:
      A dictionary with the same latents for x as `dictionary` for `scale * x`. Its output is divided by `output_scale`.
    """
    (d_in, _), (_, d_out), dtype = dictionary.W_enc.shape, dictionary.W_dec.shape, dictionary.W_enc.dtype
    into = jnp.broadcast_to(jnp.asarray(scale, dtype), (d_in,))
    out = into if output_scale is None else jnp.broadcast_to(jnp.asarray(output_scale, dtype), (d_out,))
    # (s x - b) W = (x - b/s)(s W): for a centred dictionary the input's factor must be that of b_dec
    skip = None if dictionary.W_skip is None else dictionary.W_skip * into[:, None] / out[None, :]
    return dataclasses.replace(
        dictionary,
        W_enc=dictionary.W_enc * into[:, None],
        W_dec=dictionary.W_dec / out[None, :],
        b_dec=dictionary.b_dec / out,
        W_skip=skip,
    )


def fold_input_shift(dictionary: Dictionary, shift: Float[Array, " d_in"]) -> Dictionary:
    """A dictionary for raw activations, from one that reads `x - shift` and is not centred."""
    if dictionary.centred:
        raise ValueError("a centred dictionary subtracts b_dec already")
    product = jnp.matmul(shift, dictionary.W_enc, precision="highest")
    b_dec = dictionary.b_dec
    if dictionary.W_skip is not None:
        b_dec = b_dec - jnp.matmul(shift, dictionary.W_skip, precision="highest")
    return dataclasses.replace(
        dictionary,
        b_enc=dictionary.b_enc - product,
        b_dec=b_dec,
        activation=dictionary.activation.shifted(product),
    )


def with_centre(dictionary: Dictionary, centred: bool) -> Dictionary:
    """The dictionary that computes the same and subtracts `b_dec` from its input, or does not."""
    if dictionary.centred == centred:
        return dictionary
    apart = dataclasses.replace(dictionary, centred=False, W_skip=None)  # a skip reads x itself in both
    folded = fold_input_shift(apart, -dictionary.b_dec if centred else dictionary.b_dec)
    return dataclasses.replace(folded, centred=centred, W_skip=dictionary.W_skip)


@jax.jit
def exact_row_norms(W: Float[Array, "feature d"]) -> Float[Array, " feature"]:
    """The norms of decoder rows, in float32, without a copy of the matrix."""
    return jnp.sqrt(jnp.sum(jnp.square(W.astype(jnp.float32)), axis=1))


def fold_decoder_norms(dictionary: Dictionary, norms: Float[Array, " feature"] | None = None) -> Dictionary:
    """A dictionary whose latents are multiplied by `norms` and whose decoder rows are divided by them.

    Args:
      dictionary: a dictionary.
      norms: one positive number per feature. None: the norms of the decoder rows, so that all rows get norm 1. A row
        of zeros stays as it is.

    Returns:
      The dictionary with the same reconstruction.
    """
    if norms is None:
        found = exact_row_norms(dictionary.W_dec)
        norms = jnp.where(found == 0, jnp.ones_like(found), found)
    norms = jnp.asarray(norms, dictionary.W_dec.dtype)
    return dataclasses.replace(
        dictionary,
        W_enc=dictionary.W_enc * norms[None, :],
        b_enc=dictionary.b_enc * norms,
        W_dec=dictionary.W_dec / norms[:, None],
        activation=dictionary.activation.with_unit_rows(norms),
    )


def fold_whitening(
    dictionary: Dictionary,
    mean: Float[ArrayLike, " d"],
    matrix: Float[ArrayLike, "d d"],
    inverse: Float[ArrayLike, "d d"],
) -> Dictionary:
    """A dictionary for raw activations, from an SAE of whitened ones, (x - mean) @ matrix.

    Args:
      dictionary: reads and writes whitened activations.
      mean: the mean that was subtracted.
      matrix: the whitening.
      inverse: its inverse, which maps back.

    Returns:
      The dictionary with the same latents for x as `dictionary` for (x - mean) @ matrix. Its output is mapped back.

    Raises:
      UserError: the dictionary does not write the value that it reads, or selects latents by decoder norms, which
        change.
    """
    if not dictionary.is_autoencoder():
        raise UserError("a whitening of the input can be folded into an SAE only, not into a transcoder")
    if dictionary.activation.weighted:
        raise UserError("fold the decoder norms first (fold_decoder_norms): a whitening changes them")
    dtype = dictionary.W_enc.dtype
    mean, matrix, inverse = (jnp.asarray(np.asarray(a)).astype(dtype) for a in (mean, matrix, inverse))
    product = partial(jnp.matmul, precision="highest")
    whole = dataclasses.replace(
        dictionary,
        W_enc=product(matrix, dictionary.W_enc),
        W_dec=product(dictionary.W_dec, inverse),
        b_dec=product(dictionary.b_dec, inverse) + mean,
    )
    if dictionary.centred:  # b_dec, which is subtracted, holds the mean
        return whole
    shift = product(mean, whole.W_enc)
    return dataclasses.replace(whole, b_enc=dictionary.b_enc - shift, activation=dictionary.activation.shifted(shift))
