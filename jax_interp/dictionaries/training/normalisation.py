"""Fold scales, norms and centres into the weights of a dictionary.

A dictionary is trained on s·x, with one number s for each value, chosen so that E‖s·x‖² = d. The same learning rate and
the same coefficients of the loss then fit every site of every model. Where the mean of x is far longer than its spread,
s refers to the spread, and the mean is subtracted (`data.harvest.scale_of`). The exported dictionary works on raw x.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_interp.dictionaries.activations.topk import row_norms
from jax_interp.dictionaries.forms.dictionary import Dictionary


def fold_scale(
    dictionary: Dictionary, read: Float[Array, " d_in"], write: Float[Array, " d_out"], unit: Float[Array, ""]
) -> Dictionary:
    """The dictionary whose output for x equals `dictionary(read · x) / write`, up to rounding.

    If the three scales are equal, as for an SAE, the weights do not change (decoder rows keep norm 1), and biases and
    thresholds are divided by the scale. Otherwise the rows and columns of the weights are multiplied by the ratios.
    Different scales for different written values change the norms of decoder rows. A `weighted` activation depends on
    these norms, so it is first converted to one that is not weighted (`fold_decoder_norm`).

    Args:
      dictionary: a dictionary for scaled values.
      read: the scale of each column of the input.
      write: the scale of each column of the output.
      unit: latents are divided by this number.
    """
    if dictionary.activation.weighted:
        dictionary = fold_decoder_norm(dictionary)
    dtype = dictionary.W_enc.dtype
    read, write, unit = (jnp.asarray(a, dtype) for a in (read, write, unit))
    return dataclasses.replace(
        dictionary,
        W_enc=dictionary.W_enc * (read / unit)[:, None],
        b_enc=dictionary.b_enc / unit,
        W_dec=dictionary.W_dec * (unit / write)[None, :],
        b_dec=dictionary.b_dec / write,
        activation=dictionary.activation.scaled(1 / unit),
        W_skip=None if dictionary.W_skip is None else dictionary.W_skip * read[:, None] / write[None, :],
    )


def fold_shift(dictionary: Dictionary, read: Float[Array, " d_in"], write: Float[Array, " d_out"]) -> Dictionary:
    """The dictionary whose output for x equals `dictionary(x - read) + write`, up to rounding.

    Args:
      dictionary: any dictionary. If it is centred, `read` and `write` must be equal.
      read: the vector that is subtracted from the input.
      write: the vector that is added to the output.
    """
    dtype = dictionary.W_enc.dtype
    read, write = read.astype(dtype), write.astype(dtype)
    if dictionary.centred:
        return dataclasses.replace(dictionary, b_dec=dictionary.b_dec + write)
    shift = read @ dictionary.W_enc
    b_dec = dictionary.b_dec + write
    return dataclasses.replace(
        dictionary,
        b_enc=dictionary.b_enc - shift,
        b_dec=b_dec if dictionary.W_skip is None else b_dec - read @ dictionary.W_skip,
        activation=dictionary.activation.shifted(shift),
    )


def fold_decoder_norm(dictionary: Dictionary) -> Dictionary:
    """Scale decoder rows to norm 1 without changing the function. Rows of norm 0 stay 0. Latents are multiplied by the
    norms.

    A `weighted` activation becomes one that compares only pre-activations. A TopK that is not weighted would select
    other latents afterwards, and so would a BatchTopK that is not weighted, within a batch. Train these with rows of
    norm 1.
    """
    norm = row_norms(dictionary.W_dec)
    return dataclasses.replace(
        dictionary,
        W_enc=dictionary.W_enc * norm[None, :],
        b_enc=dictionary.b_enc * norm,
        W_dec=dictionary.W_dec / norm[:, None],
        activation=dictionary.activation.with_unit_rows(norm),
    )


def fold_centre(dictionary: Dictionary) -> Dictionary:
    """Remove the subtraction of b_dec without changing the function: b_enc becomes b_enc - b_dec W_enc."""
    if not dictionary.centred:
        return dictionary
    shift = dictionary.b_dec @ dictionary.W_enc
    activation = dictionary.activation.shifted(shift)
    return dataclasses.replace(dictionary, b_enc=dictionary.b_enc - shift, activation=activation, centred=False)


def for_inference(dictionary: Dictionary) -> Dictionary:
    """The dictionary that is exported after training. BatchTopK is converted to JumpReLU, which it is at inference."""
    return dictionary.activation.for_inference(dictionary)
