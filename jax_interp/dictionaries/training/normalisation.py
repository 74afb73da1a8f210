"""Folding scales, norms and centres into the weights of a dictionary.

A dictionary is trained on s·x, with one number s for each value such that E‖s·x‖² = d. One learning rate and one scale
of the loss then fit every site of every model. The exported dictionary works on raw x.
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
    """The dictionary whose output for x is `dictionary(read · x) / write`, equal up to rounding.

    Args:
      dictionary: works on scaled values.
      read: the scale of each column that is read.
      write: the scale of each column that is written.
      unit: latents become 1 / `unit` times as large.

    Where the three scales agree, as for an SAE, the weights stay (decoder rows keep norm 1), and biases and thresholds
    are divided. Otherwise the rows and columns of the weights are multiplied by the ratios. Different scales for
    different written values change the norms of decoder rows, so an activation that is `weighted` by these norms is
    made one that is not first (`fold_decoder_norm`).
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


def fold_decoder_norm(dictionary: Dictionary) -> Dictionary:
    """The same function with decoder rows of norm 1 (rows of norm 0 stay). Latents become as large as what they write.

    An activation that is `weighted` by these norms becomes one that compares pre-activations alone. A TopK that is not
    weighted, and a BatchTopK that is not weighted within a batch, would choose other latents: they are trained with
    rows of norm 1.
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
    """The same function without the subtraction of b_dec: b_enc - b_dec W_enc in place of b_enc."""
    if not dictionary.centred:
        return dictionary
    shift = dictionary.b_dec @ dictionary.W_enc
    activation = dictionary.activation.shifted(shift)
    return dataclasses.replace(dictionary, b_enc=dictionary.b_enc - shift, activation=activation, centred=False)


def for_inference(dictionary: Dictionary) -> Dictionary:
    """The dictionary that is exported after training: a BatchTopK as the JumpReLU that it is at inference."""
    return dictionary.activation.for_inference(dictionary)
