"""Find heads that attend to the previous token, to earlier copies of a token, or one token after these (induction)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.analysis.addresses import reads_activations
from jax_interp.analysis.parts import checked_mask
from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.surgery import Activations

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
ErrorMeasure = Literal["mul", "abs"]


@reads_activations("blocks.*.attn.pattern")
def detect_head(
    acts: Activations,
    tokens: Int[Array, "batch pos"],
    detection_pattern: HeadName | Float[Array, "pos key"] | Float[Array, "batch pos key"],
    *,
    exclude_bos: bool = False,
    exclude_current_token: bool = False,
    error_measure: ErrorMeasure = "mul",
    mask: Bool[Array, "batch pos"] | None = None,
) -> Float[Array, "layer head"]:
    """How well each head's attention matches a pattern, as in TransformerLens (which rounds "abs" to three digits).

    Args:
      acts: the activations `blocks.*.attn.pattern`.
      tokens: the token ids that the model was given.
      detection_pattern: a name; or a lower triangular pattern, `[pos, key]` for all rows or `[batch, pos, key]`.
      exclude_bos: leave out attention to the first position.
      exclude_current_token: leave out attention of a token to itself.
      error_measure: "mul": the share of a head's attention at entries where the pattern is 1, from 0 to 1. "abs": one
        minus the absolute difference of attention and pattern, summed over keys and averaged over positions, from -1
        to 1.
      mask: True at real tokens, if rows are padded. The first real token then counts as BOS.

    Returns:
      Scores `[layer, head]`, the mean over the rows of the batch that have an entry that counts. NaN if no row has one.

    Raises:
      UserError: an unknown name or measure, or a pattern of another shape.

    Example:

        acts = call(read(model, needed(model, detect_head), output=False), tokens)
        detect_head(acts, tokens, "induction_head")
    """
    if error_measure not in get_args(ErrorMeasure):
        raise UserError(f"error_measure={error_measure!r}: choose from {', '.join(get_args(ErrorMeasure))}")
    real = checked_mask(mask, tokens.shape)
    wanted = _pattern(detection_pattern, tokens, real)
    pattern = upcast(acts.stack("attn.pattern"))
    keys = real & (jnp.cumsum(real.astype(jnp.int32), axis=-1) > 1) if exclude_bos else real
    counted = real[:, :, None] & keys[:, None, :]
    if exclude_current_token:
        counted = counted & ~jnp.eye(tokens.shape[-1], dtype=bool)[None]
    counted = counted.astype(pattern.dtype)
    if error_measure == "mul":
        hits = jnp.einsum("lbhqk,bqk,bqk->lhb", pattern, wanted, counted)
        scores = hits / jnp.einsum("lbhqk,bqk->lhb", pattern, counted)
    else:
        off = jnp.abs(pattern - wanted[None, :, None]) * counted[None, :, None]
        rows = jnp.sum(real.astype(pattern.dtype), axis=-1)
        scores = 1 - jnp.moveaxis(jnp.sum(off, axis=(-2, -1)), 1, 2) / rows[None, None]
    # A row with no entry that counts, such as a row of padding, has no score.
    has_entries = jnp.broadcast_to(jnp.any(counted > 0, axis=(1, 2))[None, None], scores.shape)
    return jnp.mean(scores, axis=-1, where=has_entries)


def previous_token_pattern(
    tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None = None
) -> Float[Array, "batch pos key"]:
    """The pattern of previous-token heads: 1 at the token before each token.

    Args:
      tokens: token ids.
      mask: True at real tokens, if rows are padded.
    """
    n = tokens.shape[-1]
    return _both_real(jnp.broadcast_to(jnp.eye(n, k=-1), (*tokens.shape, n)), mask)


def duplicate_token_pattern(
    tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None = None
) -> Float[Array, "batch pos key"]:
    """The pattern of duplicate-token heads: 1 at every earlier position of the same token.

    Args:
      tokens: token ids.
      mask: True at real tokens, if rows are padded.
    """
    same = tokens[:, :, None] == tokens[:, None, :]
    return _both_real(jnp.tril(same, k=-1).astype(jnp.float32), mask)


def induction_pattern(
    tokens: Int[Array, "batch pos"], mask: Bool[Array, "batch pos"] | None = None
) -> Float[Array, "batch pos key"]:
    """The pattern of induction heads: 1 at every position after an earlier position of the same token.

    Args:
      tokens: token ids.
      mask: True at real tokens, if rows are padded.
    """
    return jnp.tril(jnp.pad(duplicate_token_pattern(tokens, mask)[:, :, :-1], ((0, 0), (0, 0), (1, 0))))


PATTERNS: dict[str, Callable[[Array, Array], Array]] = {
    "previous_token_head": previous_token_pattern,
    "duplicate_token_head": duplicate_token_pattern,
    "induction_head": induction_pattern,
}


@reads_activations("blocks.*.attn.pattern")
def diagonal_scores(acts: Activations, offset: int) -> Float[Array, "layer head"]:
    """The mean attention of each head from position i to position i + `offset`.

    On `repeated_tokens` of length n, -1 finds previous-token heads, -n duplicate-token heads, and 1 - n induction
    heads.

    Args:
      acts: the activations `blocks.*.attn.pattern`.
      offset: 0 or negative.

    Returns:
      Means over batch and positions, `[layer, head]`.

    Raises:
      UserError: an offset to a later position, or longer than the sequence.
    """
    pattern = upcast(acts.stack("attn.pattern"))
    checked_mask(None, pattern.shape[1:])
    if not -pattern.shape[-1] < offset <= 0:
        raise UserError(f"offset={offset}: from {1 - pattern.shape[-1]} to 0, attention looks back")
    return jnp.mean(jnp.diagonal(pattern, offset, axis1=-2, axis2=-1), axis=(1, -1))


def _both_real(pattern: Float[Array, "batch pos key"], mask: Array | None) -> Float[Array, "batch pos key"]:
    if mask is None:
        return pattern
    return pattern * (mask[:, :, None] & mask[:, None, :]).astype(pattern.dtype)


def _pattern(
    given: str | Array, tokens: Int[Array, "batch pos"], real: Bool[Array, "batch pos"]
) -> Float[Array, "batch pos key"]:
    if isinstance(given, str):
        if given not in PATTERNS:
            raise UserError(f"no head is called {given!r}: {', '.join(PATTERNS)}, or give a pattern [pos, key]")
        return PATTERNS[given](tokens, real)
    n = tokens.shape[-1]
    given = jnp.asarray(given, jnp.float32)
    if given.shape not in ((n, n), (*tokens.shape, n)):
        raise UserError(
            f"a pattern for tokens {tokens.shape} is [{n}, {n}] or [{tokens.shape[0]}, {n}, {n}], got {given.shape}"
        )
    return jnp.broadcast_to(given if given.ndim == 3 else given[None], (*tokens.shape, n))
