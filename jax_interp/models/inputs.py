"""The inputs of a decoder. Wrong inputs are errors where their shapes, dtypes and values are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.models.cache import Cache
from jax_interp.models.config import Config
from jax_interp.surgery import is_known

Tokens = Int[Array, "batch pos"]
Mask = Bool[Array, "batch pos"]


def checked_inputs(
    config: Config, tokens: Any, mask: Any = None, positions: Any = None, cache: Any = None
) -> tuple[Tokens, Mask | None, Int[Array, "#batch pos"] | None]:
    """The tokens, the mask and the positions as arrays, in dtypes in which counts do not wrap.

    Args:
      config: the config of the model.
      tokens: token ids, an integer array `[batch, pos]`.
      mask: True for real tokens, `[batch, pos]`; or integers, 1 for real tokens and 0 for padding.
      positions: absolute positions, an integer array `[batch, pos]` or `[pos]`.
      cache: a number of slots, or a cache.

    Returns:
      `(tokens, mask, positions)`. Padding has token 0, so that its ids have no effect.

    Raises:
      UserError: one of the inputs is not what it should be. What is traced has no known values; then only shapes and
        dtypes are checked.
    """
    _check_tokens(tokens)
    _check_mask(mask, tokens.shape)
    _check_positions(config, positions, tokens.shape)
    _check_cache(cache, tokens.shape)
    _check_length(config, cache.slots if isinstance(cache, Cache) else max(tokens.shape[1], cache or 0))
    _check_ids(config.vocab_size, tokens, mask)
    tokens = _widened(tokens)
    if mask is not None:
        mask = jnp.asarray(mask) if mask.dtype == bool else jnp.asarray(mask) != 0
        tokens = jnp.where(mask, tokens, jnp.zeros_like(tokens))
    return tokens, mask, None if positions is None else jnp.atleast_2d(_widened(positions))


def _widened(x: Any) -> Array:
    """Integers as int32, or as int64 if they are. In 8 or 16 bits, counts of positions would wrap."""
    return jnp.asarray(x) if x.dtype == jnp.int64 else jnp.asarray(x, jnp.int32)


def _check_tokens(tokens: Any) -> None:
    if isinstance(tokens, (str, Sequence)) or not hasattr(tokens, "dtype"):
        raise UserError(
            f"a model takes an array of token ids (batch, pos), got {type(tokens).__name__}. To encode a text: "
            "jnp.array([tokenizer.encode(text, bos=True)])"
        )
    if tokens.ndim != 2:
        raise UserError(f"tokens have axes (batch, pos), got shape {tokens.shape}; for one sequence, give tokens[None]")
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise UserError(f"tokens are integers, got {tokens.dtype}: give token ids, such as tokens.astype('int32')")
    if 0 in tokens.shape:
        raise UserError(f"tokens have shape {tokens.shape}: there is no token. Give at least one row and one position")


def _check_mask(mask: Any, shape: tuple[int, int]) -> None:
    if mask is None:
        return
    if not hasattr(mask, "dtype") or not (mask.dtype == bool or jnp.issubdtype(mask.dtype, jnp.integer)):
        got = getattr(mask, "dtype", type(mask).__name__)
        raise UserError(f"mask is a boolean array (batch, pos), True for real tokens, got {got}")
    if mask.shape != shape:
        raise UserError(
            f"mask has shape {mask.shape}, the tokens have {shape}: give True or False for each of these tokens"
        )
    if mask.dtype != bool and is_known(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise UserError(f"mask has numbers other than 0 and 1 ({np.asarray(mask).min()} to {np.asarray(mask).max()})")


def _check_positions(config: Config, positions: Any, shape: tuple[int, int]) -> None:
    if positions is None:
        return
    if not hasattr(positions, "dtype") or not jnp.issubdtype(positions.dtype, jnp.integer):
        got = getattr(positions, "dtype", type(positions).__name__)
        raise UserError(f"positions are an array of integers, (batch, pos) or (pos), got {got}")
    if positions.shape not in (shape, (1, shape[1]), shape[1:]):
        raise UserError(f"positions have shape {positions.shape}, the tokens have {shape}: give (batch, pos) or (pos)")
    if config.positions == "learned" and is_known(positions):
        low, high = int(np.min(np.asarray(positions))), int(np.max(np.asarray(positions)))
        if low < 0 or high >= config.n_ctx:
            raise UserError(
                f"position {low if low < 0 else high} was not learned: this model has 0 to {config.n_ctx - 1}"
            )


def _check_cache(cache: Any, shape: tuple[int, int]) -> None:
    batch, new = shape
    if cache is None:
        return
    if isinstance(cache, (int, np.integer)) and not isinstance(cache, bool):
        if cache < new:
            raise UserError(f"a cache of {cache} slots cannot hold the {new} tokens that begin it")
    elif not isinstance(cache, Cache):
        got = type(cache).__name__
        raise UserError(f"cache is a number of slots (an int), or the cache that an earlier call returned, got {got}")
    elif cache.valid.shape[0] != batch:
        raise UserError(f"the cache has {cache.valid.shape[0]} rows, the tokens have {batch}")
    elif is_known(cache.length) and int(cache.length) + new > cache.slots:
        filled = int(cache.length)
        raise UserError(
            f"{new} more tokens do not fit: {filled} of the {cache.slots} slots of this cache are filled. Begin the "
            f"cache with at least {filled + new} slots"
        )


def _check_length(config: Config, n: int) -> None:
    if config.positions == "learned" and n > config.n_ctx:
        raise UserError(
            f"{n} positions were asked for, but this model has learned {config.n_ctx} (n_ctx): give fewer tokens, or a "
            "smaller cache"
        )


def _check_ids(vocab_size: int, tokens: Any, mask: Any) -> None:
    """Raise `UserError` for an id outside the vocabulary. Ids at padding are ignored."""
    if not is_known(tokens):
        return
    ids = np.asarray(tokens)
    if ids.min() >= 0 and ids.max() < vocab_size:
        return
    outside = (ids < 0) | (ids >= vocab_size)
    if mask is not None:
        outside &= np.asarray(mask) != 0 if is_known(mask) else False
    if outside.any():
        place = tuple(int(i) for i in np.argwhere(outside)[0])
        raise UserError(
            f"the token id {ids[place]} at {list(place)} is outside the vocabulary: this model has {vocab_size} ids, 0 "
            f"to {vocab_size - 1}. Encode the text with the tokenizer of this model"
        )
