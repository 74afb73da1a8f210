"""Direct logit attribution: how much each part of the stream adds to a logit, or to the difference of two.

The unembedding is linear. The final norm is also linear if its scale is fixed to that of the forward pass. The logit is
therefore a sum over parts of the stream (nostalgebraist 2020; Wang et al. 2022, §3). The effect of a part on the scale
of the norm is not counted.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.head_and_neuron_results import get_full_resid_decomposition
from jax_interp.analysis.norm_at_scale import norm_into
from jax_interp.analysis.parts import Parts, Pos, Rows, concatenate, drops_axis, expand_to, map_rows
from jax_interp.analysis.residual import decompose_resid
from jax_interp.analysis.weights import W_U, b_U, decoder
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations, Address, Edit, Model
from jax_interp.surgery.taps import taps_of

Tokens = int | Int[Array, ""] | Int[Array, "batch"] | Int[Array, "batch pos"]
"""A token for all rows, one for each row, or one for each position of each row."""
Unit = Literal["component", "head", "neuron"]


@reads_activations("ln_final.scale")
def logit_directions(
    model: Model, acts: Activations, tokens: Tokens, incorrect_tokens: Tokens | None = None, *, pos: Pos = None
) -> Float[Array, "batch *pos d_model"]:
    """The direction in the residual stream along which the logit of `tokens` grows.

    It is the token's column of W_U times the transpose of the final norm with its scale fixed. The scalar product of
    this direction with a part of the stream is what the part adds to the logit.

    Args:
      model: a decoder, with or without surgery.
      acts: the activations `ln_final.scale`.
      tokens: a token for all, one for each row `[batch]`, or one for each position `[batch, pos]`.
      incorrect_tokens: tokens whose logit is subtracted, of the same shape.
      pos: the positions to use.

    Returns:
      Directions. They have a position axis unless `pos` is a single index.

    Raises:
      UserError: the shapes of the two sets of tokens differ, or do not fit `pos`; or an edit acts after the stream, on
        the normalized values or the logits, so that the logits are not this function of the stream.
    """
    _check_edits(model)
    norm = norm_into(model, acts, pos=pos)
    return norm.transpose(_unembedding_columns(model, tokens, incorrect_tokens, ndim=2 if drops_axis(pos) else 3))


@reads_activations(logit_directions)
def logit_attrs(
    model: Model,
    acts: Activations,
    stack: Rows,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    *,
    pos: Pos = None,
) -> Rows:
    """What each row of a residual stack adds to the logit of `tokens`, or to its difference from `incorrect_tokens`.

    The logit before any softcap is the sum of three terms: the attributions of a full decomposition, the final norm's
    bias along W_U, and b_U. `direct_logit_attribution` includes all three.

    Args:
      model: a decoder, with or without surgery.
      acts: the activations `ln_final.scale`.
      stack: `[part, batch, *pos, d_model]`, `Parts` or an array, at the positions `pos`.
      tokens: see `logit_directions`.
      incorrect_tokens: see `logit_directions`.
      pos: the positions that the stack has.

    Returns:
      Attributions `[part, batch, *pos]`, with the labels of the stack.

    Raises:
      UserError: in the same cases as `logit_directions`.
    """
    direction = logit_directions(model, acts, tokens, incorrect_tokens, pos=pos)
    return map_rows(lambda rows: jnp.sum(upcast(rows) * expand_to(direction, rows.ndim), axis=-1), stack)


@reads_activations(decompose_resid, get_full_resid_decomposition, logit_directions)
def direct_logit_attribution(
    model: Model,
    acts: Activations,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    *,
    unit: Unit = "component",
    pos: Pos = -1,
) -> Parts:
    """What every part adds to the logit of `tokens`, or to its difference from the logit of `incorrect_tokens`.

    The last row, `readout`, is what the biases of the final norm and of the unembedding add. It does not depend on the
    stream. If the model has edits, the row `edits` before it is what the edits add, apart from the other rows. All rows
    sum to the logit (or the difference); if the model has a softcap, to the logit before the softcap.

    Args:
      model: a decoder, with or without surgery.
      acts: the activations at `needed(model, direct_logit_attribution)`.
      tokens: a token for all, one for each row `[batch]`, or one for each position `[batch, pos]`.
      incorrect_tokens: tokens whose logit is subtracted, of the same shape.
      unit: the rows. "component": the embeddings, and `attn_out` and `mlp_out` of every layer. "head": heads instead of
        `attn_out`, and output biases as `bias`. "neuron": also neurons instead of `mlp_out`.
      pos: the positions to use; the last by default.

    Returns:
      Attributions in logits, rows `[batch, *pos]`.

    Raises:
      UserError: an unknown unit; or in the same cases as `logit_directions`.

    Example:

        logits, acts = call(read(model, needed(model, direct_logit_attribution)), tokens)
        parts = direct_logit_attribution(model, acts, answer, other, unit="head")
        parts.top(10)
    """
    if unit not in get_args(Unit):
        raise UserError(f"unit={unit!r}: choose from {', '.join(get_args(Unit))}")
    direction = logit_directions(model, acts, tokens, incorrect_tokens, pos=pos)
    if unit == "component":
        parts = decompose_resid(model, acts, pos=pos, onto=direction)
    else:
        parts = get_full_resid_decomposition(model, acts, expand_neurons=unit == "neuron", pos=pos, onto=direction)
    norm = norm_into(model, acts, pos=pos)
    columns = _unembedding_columns(model, tokens, incorrect_tokens, ndim=direction.ndim)
    constant = _unembedding_bias(model, tokens, incorrect_tokens, ndim=direction.ndim - 1)
    if norm.bias is not None:
        constant = constant + jnp.sum(columns * expand_to(norm.bias, columns.ndim), axis=-1)
    row = jnp.broadcast_to(constant, parts.values.shape[1:])[None]
    return concatenate(parts, Parts(row, ("readout",)))


def _check_edits(model: Model) -> None:
    for tap in taps_of(model):
        address = str(Address.parse(tap.address)) if isinstance(tap, Edit) else ""
        if address.split(".")[0] in ("ln_final", "unembed", "logits") and address != "ln_final.scale":
            raise UserError(
                f"the edit at {address!r} acts between the stream and the logits, so the logits are not the sum of "
                "what the parts of the stream add: attribute the model without this edit"
            )


def _unembedding_columns(
    model: Model, tokens: Tokens, incorrect: Tokens | None, *, ndim: int
) -> Float[Array, "*#batch_pos d_model"]:
    """The columns of the unembedding for the tokens, scaled as logits are, with the axes `[batch, pos, d_model]`."""
    columns = upcast(_lookup(W_U(model).T, tokens))
    if incorrect is not None:
        _check_same_shape(tokens, incorrect)
        columns = columns - upcast(_lookup(W_U(model).T, incorrect))
    columns = columns * jnp.asarray(decoder(model).config.logit_scale, columns.dtype)
    return _align(columns, jnp.ndim(tokens), ndim)


def _unembedding_bias(
    model: Model, tokens: Tokens, incorrect: Tokens | None, *, ndim: int
) -> Float[Array, "*#batch_pos"]:
    bias = upcast(_lookup(b_U(model), tokens))
    bias = bias if incorrect is None else bias - upcast(_lookup(b_U(model), incorrect))
    bias = bias * jnp.asarray(decoder(model).config.logit_scale, bias.dtype)
    return _align(bias, jnp.ndim(tokens), ndim)


def _lookup(table: Float[Array, "vocab ..."], tokens: Tokens) -> Array:
    return table.at[jnp.asarray(tokens)].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def _align(x: Array, leading: int, ndim: int) -> Array:
    """`x` with axes of length one in place of the axes that the tokens do not have: batch and position, or position."""
    if leading == 1 and x.ndim < ndim:
        return jnp.expand_dims(x, 1)
    if x.ndim > ndim:
        raise UserError("tokens [batch, pos] go with positions that keep their axis: give pos as a slice, or [batch]")
    return expand_to(x, ndim)


def _check_same_shape(tokens: Tokens, incorrect: Tokens) -> None:
    if jnp.shape(tokens) != jnp.shape(incorrect):
        raise UserError(f"tokens {jnp.shape(tokens)} and incorrect_tokens {jnp.shape(incorrect)} differ in shape")
