"""Which heads attend in a given way: to the previous token, to the same token, to what followed it (induction)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.errors import UserError
from jax_interp.models.analysis.parts import wide
from jax_interp.surgery import Activations

HeadName = Literal["previous_token_head", "duplicate_token_head", "induction_head"]
ErrorMeasure = Literal["mul", "abs"]


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
    """How well each head's attention matches a pattern; the mean over the batch. Reads `blocks.*.attn.pattern`.

    "mul": the share of a head's attention that falls where the pattern is 1, 0 to 1. "abs": one minus the absolute
    difference, summed over keys and averaged over positions, -1 to 1; patterns may then say how much attention.
    `exclude_bos` leaves attention to the first position out, `exclude_current_token` that of a token to itself.
    `detection_pattern` is a name or any lower triangular pattern, for all rows or for each. `mask` is True at real
    tokens where rows are padded (the first position is then still position 0). As TransformerLens (which rounds "abs"
    to three digits).
    """
    if error_measure not in get_args(ErrorMeasure):
        raise UserError(f"error_measure={error_measure!r}: choose from {', '.join(get_args(ErrorMeasure))}")
    wanted = _pattern(detection_pattern, tokens)
    pattern = wide(acts.stack("attn.pattern"))
    counted = jnp.ones_like(wanted, bool)
    if exclude_bos:
        counted = counted.at[:, :, 0].set(False)
    if exclude_current_token:
        counted = counted & ~jnp.eye(tokens.shape[-1], dtype=bool)[None]
    rows = jnp.full(tokens.shape[0], tokens.shape[-1], pattern.dtype)
    if mask is not None:
        counted = counted & mask[:, :, None] & mask[:, None, :]
        rows = jnp.sum(mask.astype(pattern.dtype), axis=-1)
    counted = counted.astype(pattern.dtype)
    if error_measure == "mul":
        found = jnp.einsum("lbhqk,bqk,bqk->lhb", pattern, wanted, counted)
        scores = found / jnp.einsum("lbhqk,bqk->lhb", pattern, counted)
    else:
        off = jnp.abs(pattern - wanted[None, :, None]) * counted[None, :, None]
        scores = 1 - jnp.moveaxis(jnp.sum(off, axis=(-2, -1)), 1, 2) / rows[None, None]
    return jnp.mean(scores, axis=-1)


def previous_token_pattern(tokens: Int[Array, "batch pos"]) -> Float[Array, "batch pos key"]:
    """1 at the token before each; the first token's row is empty."""
    n = tokens.shape[-1]
    return jnp.broadcast_to(jnp.eye(n, k=-1), (*tokens.shape, n))


def duplicate_token_pattern(tokens: Int[Array, "batch pos"]) -> Float[Array, "batch pos key"]:
    """1 at every earlier position of the same token."""
    same = tokens[:, :, None] == tokens[:, None, :]
    return jnp.tril(same, k=-1).astype(jnp.float32)


def induction_pattern(tokens: Int[Array, "batch pos"]) -> Float[Array, "batch pos key"]:
    """1 at every position that follows an earlier one of the same token."""
    return jnp.tril(jnp.pad(duplicate_token_pattern(tokens)[:, :, :-1], ((0, 0), (0, 0), (1, 0))))


PATTERNS: dict[str, Callable[[Array], Array]] = {
    "previous_token_head": previous_token_pattern,
    "duplicate_token_head": duplicate_token_pattern,
    "induction_head": induction_pattern,
}


def repeated_tokens(
    key: Array, vocab_size: int, length: int, *, batch: int = 1, bos: int | None = None, first_id: int = 0
) -> Int[Array, "batch pos"]:
    """Random tokens (ids from `first_id`) said twice, after `bos` if given: what induction heads are found on."""
    tokens = jax.random.randint(key, (batch, length), first_id, vocab_size)
    twice = jnp.concatenate([tokens, tokens], axis=1)
    return twice if bos is None else jnp.pad(twice, ((0, 0), (1, 0)), constant_values=bos)


def diagonal_scores(acts: Activations, offset: int) -> Float[Array, "layer head"]:
    """Each head's mean attention from a position to the one `offset` from it. Reads `blocks.*.attn.pattern`.

    On `repeated_tokens` of length n: -1 finds previous-token heads, -n duplicate-token heads, 1 - n induction heads.
    """
    pattern = wide(acts.stack("attn.pattern"))
    if not -pattern.shape[-1] < offset <= 0:
        raise UserError(f"offset={offset}: from {1 - pattern.shape[-1]} to 0, attention looks back")
    return jnp.mean(jnp.diagonal(pattern, offset, axis1=-2, axis2=-1), axis=(1, -1))


def _pattern(given: str | Array, tokens: Int[Array, "batch pos"]) -> Float[Array, "batch pos key"]:
    if isinstance(given, str):
        if given not in PATTERNS:
            raise UserError(f"no head is called {given!r}: {', '.join(PATTERNS)}, or give a pattern [pos, key]")
        return PATTERNS[given](tokens)
    n = tokens.shape[-1]
    given = jnp.asarray(given, jnp.float32)
    if given.shape not in ((n, n), (*tokens.shape, n)):
        raise UserError(
            f"a pattern for tokens {tokens.shape} is [{n}, {n}] or [{tokens.shape[0]}, {n}, {n}], got {given.shape}"
        )
    return jnp.broadcast_to(given if given.ndim == 3 else given[None], (*tokens.shape, n))
