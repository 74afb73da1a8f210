"""Generation: continue a batch of prompts token by token, with a KV cache.

`generate` is one compiled program. `stream` runs the same step in a Python loop and yields each token as soon as it is
chosen. Both take a `Decoder`, with or without surgery. Edits act on the positions of the prompt and of the new tokens,
and reads return the values at all these positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.core.layer import upcast
from jax_interp.core.pytrees import register_dataclass
from jax_interp.models.cache import Cache, empty_cache
from jax_interp.models.generation.generated_values import axes_of, check_edits, has_reads, padded, with_step
from jax_interp.models.generation.out_major import stepping_model
from jax_interp.models.generation.sampling import (
    LARGEST,
    Chooser,
    Greedy,
    Number,
    check_number,
    penalized,
    seen_tokens,
)
from jax_interp.models.generation.unstacking import unstacked_cache
from jax_interp.models.inputs import checked_inputs
from jax_interp.surgery import Activations, is_known
from jax_interp.surgery.contract import Model

GREEDY = Greedy()


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, "batch pos"], Bool[np.ndarray, "batch pos"]]:
    """Pad prompts of different lengths on the left with token 0. Returns `(tokens, mask)`, both `[batch, pos]`.

    Raises:
      UserError: a prompt has no tokens.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("every prompt needs at least one token (a BOS, for example)")
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), longest), np.int32)
    mask = np.zeros((len(prompts), longest), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = True
    return tokens, mask


def generate(
    model: Model,
    tokens: Int[Array | np.ndarray, "batch pos"],
    n_new: int,
    *,
    mask: Bool[Array | np.ndarray, "batch pos"] | None = None,
    choose: Chooser = GREEDY,
    key: Array | None = None,
    stop: Sequence[int] = (),
    repetition_penalty: Number | None = None,
) -> Any:
    """Continue each prompt by `n_new` tokens, as one compiled program.

    A new `n_new` or a new shape of the prompts compiles again. Edits, the numbers of the chooser, the key, the penalty
    and the stop tokens are data. A stacked model and a list of blocks take the same time for each new token, also on a
    CPU (`unstacking.py`).

    Args:
      model: a `Decoder`, with any edits and reads.
      tokens: the prompts, `[batch, pos]`. To pad prompts of different lengths, use `pad_left`.
      n_new: the number of new tokens.
      mask: True for real tokens of the prompts, False for padding (or 1 and 0). None: all tokens are real.
      choose: how to choose a token: `Greedy()`, `Sample(...)`, or any callable pytree `(key, logits) -> tokens`.
      key: a PRNG key, for a chooser that samples. Each step derives its own key from it.
      stop: token ids that end a row. The row then repeats its stop token. The program ends when all rows have stopped.
      repetition_penalty: makes tokens that already occur in the row (including the prompt) less likely; see
        `sampling.penalized`. 1 has no effect.

    Returns:
      The new tokens, `[batch, n_new]`. If the model reads values: `(tokens, Activations)`. The values have
      `pos + n_new - 1` positions: those of the prompts and of all new tokens except the last, which the model never
      processes. A key axis (`attn.pattern`) has the same length. From its stop token on, the values of a row are zero.
      Tokens are int32. A row with NaN logits (after an edit with a traced index out of range, for example), or whose
      logits are all minus infinity, has tokens -1.

    Raises:
      UserError: the chooser samples but there is no key; a row has no real token; a number, a token id or a stop token
        is out of range; or an edit names a position that the model never processes.

    Example:
        tokens, mask = pad_left([tokenizer.encode(text, bos=True) for text in texts])
        steered = edit(model, at("blocks.3.resid_post", Add(vector)))
        new = generate(steered, tokens, 20, mask=mask, choose=Sample(temperature=0.8), key=jax.random.key(0))
    """
    tokens, mask, sampling = _checked(model, tokens, n_new, mask, choose, key, stop, repetition_penalty)
    return _generate(model, stepping_model(model, tokens.shape[0], n_new), tokens, n_new, mask, sampling)


def stream(
    model: Model,
    tokens: Int[Array | np.ndarray, "batch pos"],
    n_new: int,
    *,
    mask: Bool[Array | np.ndarray, "batch pos"] | None = None,
    choose: Chooser = GREEDY,
    key: Array | None = None,
    stop: Sequence[int] = (),
    repetition_penalty: Number | None = None,
) -> Iterator[Int[np.ndarray, "batch"]]:
    """Yield the tokens of `generate`, one token of each row at a time, as soon as they are chosen.

    The iterator ends when all rows have stopped. Each step is one call of a compiled program.

    Args:
      model: a `Decoder`, with any edits.
      tokens: the prompts, `[batch, pos]`. All arguments are as in `generate`.
      n_new: the number of new tokens.
      mask: True for real tokens of the prompts.
      choose: how to choose a token.
      key: a PRNG key, for a chooser that samples.
      stop: token ids that end a row.
      repetition_penalty: makes tokens that already occur in the row less likely.

    Returns:
      An iterator of token ids `[batch]`.

    Raises:
      UserError: for the same reasons as in `generate`, or if the model reads values, which `stream` cannot return.

    Example:
        for column in stream(model, tokens, 20, mask=mask):
            print(tokenizer.decode(column[:1]), end="", flush=True)
    """
    if has_reads(model):
        raise UserError("stream gives tokens only: use generate, which also returns the values that are read")
    tokens, mask, sampling = _checked(model, tokens, n_new, mask, choose, key, stop, repetition_penalty)
    views = stepping_model(model, tokens.shape[0], n_new)

    def columns() -> Iterator[np.ndarray]:
        state = _first(model, views, tokens, n_new, mask, sampling)
        for i in range(n_new):
            token, stopped = np.array(state.token), np.array(state.stopped)  # copies: the state's memory is donated
            yield token
            if stopped.all() or i + 1 == n_new:
                return
            state = _next(model if views is None else views, state, sampling)

    return columns()


@register_dataclass
@dataclass(frozen=True)
class Sampling:
    """The settings for choosing the next token. All are data, except the class of the chooser."""

    choose: Chooser
    key: Array
    stop: Int[Array | np.ndarray, "stops"]
    penalty: Float[Array, ""] | None

    def next_token(
        self, i: Int[Array, ""], logits: Float[Array, "batch 1 vocab"], seen: Bool[Array, "batch vocab"] | None
    ) -> Int[Array, "batch"]:
        """The `i`-th new token of every row."""
        logits = upcast(logits[:, 0])
        if seen is not None and self.penalty is not None:
            logits = penalized(logits, seen, self.penalty)
        token = self.choose(jax.random.fold_in(self.key, i), logits)
        none_possible = jnp.max(logits, axis=-1) == -jnp.inf
        return jnp.where(jnp.any(jnp.isnan(logits), axis=-1) | none_possible, -1, token).astype(jnp.int32)

    def is_stop(self, token: Int[Array, "batch"]) -> Bool[Array, "batch"]:
        """Which rows stop at this token."""
        return jnp.any(token[:, None] == self.stop[None, :], axis=1)


@register_dataclass
@dataclass(frozen=True)
class GenerationState:
    """The state after `count` new tokens."""

    count: Int[Array, ""]
    token: Int[Array, "batch"]
    """The last token of each row. The model has not processed it yet."""
    stopped: Bool[Array, "batch"]
    cache: Cache
    seen: Bool[Array, "batch vocab"] | None
    """Which tokens occur in each row so far; None without a penalty."""


def prefill(
    model: Any, tokens: Array, n_new: int, mask: Array | None, sampling: Sampling, keyed: bool
) -> tuple[GenerationState, Activations | None]:
    """Run the prompts and choose the first token. Also returns the values that are read.

    `keyed`: a value with a key axis is read. The key axis must then have the length of the whole cache from the start.
    """
    slots = tokens.shape[1] + n_new - 1  # the model never processes the last token
    begin: Cache | int = slots
    if keyed:
        real = jnp.ones_like(tokens) if mask is None else mask
        begin = empty_cache(model.blocks, tokens, slots, jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32))
    out = model(tokens, mask=mask, cache=begin, last_only=True)
    (logits, cache), acts = out if has_reads(model) else (out, None)
    seen = None if sampling.penalty is None else seen_tokens(tokens, mask, logits.shape[-1])
    token = sampling.next_token(jnp.int32(0), logits, seen)
    return GenerationState(jnp.int32(1), token, sampling.is_stop(token), cache, seen), acts


def decode_step(model: Model, state: GenerationState, sampling: Sampling) -> tuple[GenerationState, Activations | None]:
    """Run the last token of each row and choose the next one. Also returns the values that are read."""
    # A row that has stopped repeats its token. To edits that compare rows, that is padding.
    out = model(state.token[:, None], cache=state.cache, mask=~state.stopped[:, None], last_only=True)
    (logits, cache), acts = out if has_reads(model) else (out, None)
    seen = state.seen
    if seen is not None:
        ids = jnp.arange(seen.shape[1], dtype=jnp.int32)
        seen = seen | (ids[None, :] == state.token[:, None])
    chosen = sampling.next_token(state.count, logits, seen)
    token = jnp.where(state.stopped, state.token, chosen)
    return GenerationState(state.count + 1, token, state.stopped | sampling.is_stop(token), cache, seen), acts


@partial(jax.jit, static_argnames="n_new")
def _first(model, views, tokens, n_new, mask, sampling):
    state, _ = prefill(model, tokens, n_new, mask, sampling, keyed=False)
    return state if views is None else replace(state, cache=unstacked_cache(state.cache, model))


@partial(jax.jit, donate_argnames="state")
def _next(model, state, sampling):
    return decode_step(model, state, sampling)[0]


@partial(jax.jit, static_argnames="n_new")
def _generate(model, views, tokens, n_new, mask, sampling):
    axes = axes_of(model, tokens, mask)
    keyed = any("key" in names for names in axes.values())
    state, acts = prefill(model, tokens, n_new, mask, sampling, keyed)
    values = None if acts is None else padded(acts, axes, n_new - 1)
    if views is not None:  # the steps after the prompt
        state, model = replace(state, cache=unstacked_cache(state.cache, model)), views

    def unfinished(carry):
        return (carry[0].count < n_new) & ~jnp.all(carry[0].stopped)

    def step(carry):
        state, out, values = carry
        after, acts = decode_step(model, state, sampling)
        if values is not None and acts is not None:
            values = with_step(values, acts, axes, tokens.shape[1] + state.count - 1, state.stopped)
        return after, jax.lax.dynamic_update_index_in_dim(out, after.token, state.count, 0), values

    out = jnp.broadcast_to(state.token, (n_new, tokens.shape[0]))
    state, out, values = jax.lax.while_loop(unfinished, step, (state, out, values))
    out = jnp.where(jnp.arange(n_new)[:, None] < state.count, out, state.token[None, :]).T
    return out if values is None else (out, values)


def _checked(
    model: Any,
    tokens: Array | np.ndarray,
    n_new: int,
    mask: Array | np.ndarray | None,
    choose: Chooser,
    key: Array | None,
    stop: Sequence[int],
    penalty: Number | None,
) -> tuple[Array, Array | None, Sampling]:
    """The tokens and the mask as arrays, and the sampling settings. Raises `UserError` for invalid arguments."""
    if isinstance(n_new, bool) or not isinstance(n_new, (int, np.integer)) or n_new < 1:
        raise UserError(f"n_new={n_new} must be a whole number of at least 1")
    tokens, mask, _ = checked_inputs(model.config, tokens, mask)
    if is_known(mask) and not (any_real := np.asarray(mask).any(axis=1)).all():
        raise UserError(f"row {int(np.argmin(any_real))} of mask has no real token: every prompt needs one")
    check_edits(model, tokens.shape[1], n_new)
    if key is None:
        if not isinstance(choose, Greedy):
            raise UserError(f"{type(choose).__name__} draws at random: give generate a key, jax.random.key(seed)")
        key = jax.random.key(0)
    elif not _is_key(key):
        raise UserError(f"key is one PRNG key, jax.random.key(seed), got {key!r}")
    stops = np.asarray(stop).reshape(-1)
    vocab_size = model.config.vocab_size
    if stops.size and not (stops.dtype.kind in "iu" and ((stops >= 0) & (stops < vocab_size)).all()):
        raise UserError(
            f"stop={stop!r} takes token ids of this model, 0 to {vocab_size - 1} (complete takes strings too)"
        )
    if penalty is not None:
        check_number("repetition_penalty", penalty, 0, LARGEST, above=True)
        penalty = jnp.asarray(penalty, jnp.float32)
    return tokens, mask, Sampling(choose, key, stops.astype(np.int32), penalty)


def _is_key(key: Any) -> bool:
    """Whether `key` is one PRNG key, of the new or the old kind."""
    if not isinstance(key, (jax.Array, np.ndarray)):
        return False
    return key.shape == (() if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else (2,))
