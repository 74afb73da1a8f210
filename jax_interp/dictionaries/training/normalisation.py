"""Input scaling, and folding it away.

A dictionary is trained on s·x with one scalar s a value such that E‖s·x‖² = d, which makes one learning rate and one
loss scale serve every site of every model. What is exported works on raw x.
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
    """The dictionary whose output for x is `dictionary(read · x) / write`, with latents in raw units: 1 / `unit` times
    as large. `read` and `write` are the scales of the columns read and written.

    Where all three agree, as for an SAE, weights stay as they are (decoder rows keep norm 1) and biases and thresholds
    are divided; otherwise rows and columns of the weights take up the ratios. In float arithmetic equal to rounding.
    Scales change one written value's part of a row by another, so a choice that is `weighted` by the norms of rows is
    first made one that is not (`fold_decoder_norm`).
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
    """The same function with decoder rows of norm 1 (rows of norm 0 stay), latents as large as what they write.

    A choice that is `weighted` by these norms becomes one by pre-activation alone, which it then is. The choice of a
    TopK that is not weighted, and of such a BatchTopK within a batch, would change: those are trained with rows of
    norm 1 anyway.
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
    """What is exported: a BatchTopK dictionary as the JumpReLU that it is at inference, others as they are."""
    return dictionary.activation.for_inference(dictionary)
