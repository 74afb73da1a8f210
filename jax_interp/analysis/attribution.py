"""Direct logit attribution: how much each part of the stream adds to a logit, or to the difference of two.

The unembedding is linear and so is the final norm at the scale it had, so the logit is a sum over parts (nostalgebraist
2020; Wang et al. 2022, §3). What the norm's scale would have been without a part is not counted.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_interp.analysis.decomposition import get_full_resid_decomposition
from jax_interp.analysis.norm_at_scale import norm_into
from jax_interp.analysis.parts import Parts, Pos, concatenate, drops_axis, each, over
from jax_interp.analysis.residual import decompose_resid
from jax_interp.analysis.weights import W_U, b_U, decoder
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations

Tokens = int | Int[Array, ""] | Int[Array, "batch"] | Int[Array, "batch pos"]
Unit = Literal["component", "head", "neuron"]


def logit_directions(
    model: Any, acts: Activations, tokens: Tokens, incorrect_tokens: Tokens | None = None, *, pos: Pos = None
) -> Float[Array, "batch *pos d_model"]:
    """The direction in the residual stream along which the logit of `tokens` grows (less that of `incorrect_tokens`).

    A vector's scalar product with it is what that vector, as a part of the stream, adds to the logit: the token's
    column of W_U taken back through the final norm at the scale it had. A token for all, one for each row `[batch]`,
    or one for each position `[batch, pos]`. Needs `ln_final.scale`.
    """
    norm = norm_into(model, acts, pos=pos)
    return norm.pull(_columns(model, tokens, incorrect_tokens, ndim=2 if drops_axis(pos) else 3))


def logit_attrs(
    model: Any,
    acts: Activations,
    stack: Parts | Float[Array, "part batch *pos d_model"],
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    *,
    pos: Pos = None,
) -> Any:
    """What each row of a residual stack adds to the logit of `tokens`, or to its difference from `incorrect_tokens`.

    `[part, batch, pos]`, named as the stack is. Attributions to all parts of a full decomposition, the final norm's
    bias along W_U and b_U sum to the logit before any softcap: `direct_logit_attribution` has these in it.
    """
    direction = logit_directions(model, acts, tokens, incorrect_tokens, pos=pos)
    return each(stack, lambda rows: jnp.sum(upcast(rows) * over(direction, rows.ndim), axis=-1))


def direct_logit_attribution(
    model: Any,
    acts: Activations,
    tokens: Tokens,
    incorrect_tokens: Tokens | None = None,
    *,
    unit: Unit = "component",
    pos: Pos = -1,
) -> Parts:
    """Every part's share of the logit of `tokens` (less that of `incorrect_tokens`), at the last position by default.

    `unit` "component": the embeddings and every layer's `attn_out` and `mlp_out`. "head": attention by heads, MLPs
    whole, output biases as `bias`. "neuron": MLPs by neurons too. The last row, `readout`, is what the final norm's
    bias and the unembedding's add whatever the stream is; with it the rows sum to the logit (or the difference), before
    the softcap where the model has one. `.top(10)` lists the largest.

    Reads `ln_final.scale` and what the decomposition reads (`needed(model, direct_logit_attribution)`: all of it).
    """
    if unit not in get_args(Unit):
        raise UserError(f"unit={unit!r}: choose from {', '.join(get_args(Unit))}")
    direction = logit_directions(model, acts, tokens, incorrect_tokens, pos=pos)
    if unit == "component":
        parts = decompose_resid(model, acts, pos=pos, onto=direction)
    else:
        parts = get_full_resid_decomposition(model, acts, expand_neurons=unit == "neuron", pos=pos, onto=direction)
    norm = norm_into(model, acts, pos=pos)
    columns = _columns(model, tokens, incorrect_tokens, ndim=direction.ndim)
    constant = _unembedding_bias(model, tokens, incorrect_tokens, ndim=direction.ndim - 1)
    if norm.bias is not None:
        constant = constant + jnp.sum(columns * over(norm.bias, columns.ndim), axis=-1)
    row = jnp.broadcast_to(constant, parts.values.shape[1:])[None]
    return concatenate(parts, Parts(row, ("readout",)))


def _columns(model: Any, tokens: Tokens, incorrect: Tokens | None, *, ndim: int) -> Float[Array, "*#batch_pos d_model"]:
    """The unembedding's columns of the tokens, scaled as logits are, with the axes `[batch, pos, d_model]`."""
    columns = upcast(_taken(W_U(model).T, tokens))
    if incorrect is not None:
        _same_shape(tokens, incorrect)
        columns = columns - upcast(_taken(W_U(model).T, incorrect))
    columns = columns * jnp.asarray(decoder(model).config.logit_scale, columns.dtype)
    return _placed(columns, jnp.ndim(tokens), ndim)


def _unembedding_bias(
    model: Any, tokens: Tokens, incorrect: Tokens | None, *, ndim: int
) -> Float[Array, "*#batch_pos"]:
    bias = upcast(_taken(b_U(model), tokens))
    bias = bias if incorrect is None else bias - upcast(_taken(b_U(model), incorrect))
    bias = bias * jnp.asarray(decoder(model).config.logit_scale, bias.dtype)
    return _placed(bias, jnp.ndim(tokens), ndim)


def _taken(table: Float[Array, "vocab ..."], tokens: Tokens) -> Array:
    return table.at[jnp.asarray(tokens)].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)


def _placed(x: Array, leading: int, ndim: int) -> Array:
    """Axes of length one where the tokens had none: [] all, [batch] its positions."""
    if leading == 1 and x.ndim < ndim:
        return jnp.expand_dims(x, 1)
    if x.ndim > ndim:
        raise UserError("tokens [batch, pos] go with positions that keep their axis: give pos as a slice, or [batch]")
    return over(x, ndim)


def _same_shape(tokens: Tokens, incorrect: Tokens) -> None:
    if jnp.shape(tokens) != jnp.shape(incorrect):
        raise UserError(f"tokens {jnp.shape(tokens)} and incorrect_tokens {jnp.shape(incorrect)} differ in shape")
