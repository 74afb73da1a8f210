"""Generation: a batch of prompts goes on token by token, with a KV cache.

`generate` is one compiled program, `stream` a loop over the same step that hands out tokens as they come. Both take any
model that keeps `Decoder`'s way with a cache, under surgery too: edits act at the prompt's positions and at the new
ones, which are absolute, and what is read is kept over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_interp.core.errors import UserError
from jax_interp.models.cache import Cache, empty_cache
from jax_interp.models.generation.generated_values import axes_of, check_edits, reads_of, with_room, written
from jax_interp.models.generation.sampling import Greedy, penalized, seen_tokens

GREEDY = Greedy()


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, "batch pos"], Bool[np.ndarray, "batch pos"]]:
    """Prompts of different lengths as `(tokens, mask)`, all ending at the last column. Padding is token 0."""
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise UserError("every prompt needs at least one token (a BOS, say)")
    longest = max(map(len, prompts))
    tokens = np.zeros((len(prompts), longest), np.int32)
    mask = np.zeros((len(prompts), longest), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = True
    return tokens, mask


def generate(
    model: Callable,
    tokens: Int[Array | np.ndarray, "batch pos"],
    n_new: int,
    *,
    mask: Bool[Array | np.ndarray, "batch pos"] | None = None,
    choose: Callable = GREEDY,
    key: Array | None = None,
    stop: Sequence[int] = (),
    repetition_penalty: Any = None,
) -> Any:
    """`n_new` tokens after each prompt, `[batch, n_new]`; under `read(...)`, `(tokens, Activations)`.

    Args:
      model: a `Decoder`, edited or read as you like.
      tokens, mask: the prompts; where they differ in length, padded (`pad_left`), `mask` saying what is real.
      n_new: how many tokens are written. Changing it, or the prompts' shape, compiles anew; edits, the chooser's
        numbers, the key, the penalty and the stop tokens are data.
      choose: `Greedy()`, `Sample(temperature, top_k, top_p, min_p)`, or any callable pytree `(key, logits) -> tokens`.
      key: for a chooser that draws; each step has a key of its own.
      stop: token ids that end a row. From there on the row repeats the one it stopped at; the program ends when all
        rows have stopped.
      repetition_penalty: makes every token that stands in the row, prompt included, less likely before one is chosen
        (`sampling.penalized`); 1 is none.

    What is read has `pos + n_new - 1` positions, those of the prompts' columns and then of the new tokens but the last:
    that one is chosen from the values at the position before it, and never goes through the model. So it is with a stop
    token: a row's values are zero at it and after. A key axis (`attn.pattern`) has the same length.

    A row whose logits are NaN, as an edit's index that is data and outside makes them, gives tokens -1.
    """
    tokens, how = _asked(model, tokens, n_new, choose, key, stop, repetition_penalty)
    return _generate(model, tokens, n_new, mask, how)


def stream(
    model: Callable,
    tokens: Int[Array | np.ndarray, "batch pos"],
    n_new: int,
    *,
    mask: Bool[Array | np.ndarray, "batch pos"] | None = None,
    choose: Callable = GREEDY,
    key: Array | None = None,
    stop: Sequence[int] = (),
    repetition_penalty: Any = None,
) -> Iterator[Int[np.ndarray, "batch"]]:
    """The columns of what `generate` writes, one by one as they are chosen; the same tokens.

    It ends when all rows have stopped, or when you stop asking. One dispatch for each token.
    """
    if reads_of(model):
        raise UserError("stream hands out tokens only: generate returns what is read too")
    tokens, how = _asked(model, tokens, n_new, choose, key, stop, repetition_penalty)

    def columns():
        state = _first(model, tokens, n_new, mask, how)
        for i in range(n_new):
            token, done = np.array(state.token), np.array(state.done)  # copies: the state's memory is used again
            yield token
            if done.all() or i + 1 == n_new:
                return
            state = _next(model, state, how)

    return columns()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class How:
    """What decides the next token besides the model: data, but for the chooser's kind."""

    choose: Callable
    key: Array
    stop: Int[Array | np.ndarray, "stops"]
    penalty: Array | None

    def pick(self, i: Int[Array, ""], logits: Array, seen: Array | None) -> Int[Array, "batch"]:
        """The `i`-th token of every row."""
        logits = logits[:, 0].astype(jnp.float32)
        if seen is not None and self.penalty is not None:
            logits = penalized(logits, seen, self.penalty)
        token = self.choose(jax.random.fold_in(self.key, i), logits)
        return jnp.where(jnp.any(jnp.isnan(logits), axis=-1), -1, token)

    def stops(self, token: Int[Array, "batch"]) -> Bool[Array, "batch"]:
        return jnp.any(token[:, None] == self.stop[None, :], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Generation after `i` tokens."""

    i: Int[Array, ""]
    token: Int[Array, "batch"]
    """The last one of each row, not yet given to the model."""
    done: Bool[Array, "batch"]
    cache: Cache
    seen: Bool[Array, "batch vocab"] | None
    """Which tokens stand in a row, where a penalty wants to know."""


def start(model: Any, tokens: Array, n_new: int, mask: Array | None, how: How, keyed: bool) -> tuple[State, Any]:
    """Read the prompts and choose the first token; also gives what was read. `keyed`: a value with a key axis is read,
    which is to have the cache's slots from the beginning."""
    cache: Any = tokens.shape[1] + n_new - 1  # the last token is never given to the model
    if keyed:
        real = jnp.ones_like(tokens) if mask is None else mask
        cache = empty_cache(model.blocks, tokens, cache, jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32))
    out = model(tokens, mask=mask, cache=cache, last_only=True)
    (logits, cache), acts = out if reads_of(model) else (out, None)
    seen = None if how.penalty is None else seen_tokens(tokens, mask, logits.shape[-1])
    token = how.pick(jnp.int32(0), logits, seen).astype(tokens.dtype)
    return State(jnp.int32(1), token, how.stops(token), cache, seen), acts


def advance(model: Callable, state: State, how: How) -> tuple[State, Any]:
    """Give the last tokens to the model and choose the next."""
    out = model(state.token[:, None], cache=state.cache, last_only=True)
    (logits, cache), acts = out if reads_of(model) else (out, None)
    seen = state.seen
    if seen is not None:
        ids = jnp.arange(seen.shape[1], dtype=state.token.dtype)
        seen = seen | (ids[None, :] == state.token[:, None])
    chosen = how.pick(state.i, logits, seen).astype(state.token.dtype)
    token = jnp.where(state.done, state.token, chosen)
    return State(state.i + 1, token, state.done | how.stops(token), cache, seen), acts


@partial(jax.jit, static_argnames="n_new")
def _first(model, tokens, n_new, mask, how):
    return start(model, tokens, n_new, mask, how, keyed=False)[0]


@partial(jax.jit, donate_argnames="state")
def _next(model, state, how):
    return advance(model, state, how)[0]


@partial(jax.jit, static_argnames="n_new")
def _generate(model, tokens, n_new, mask, how):
    axes = axes_of(model, tokens, mask)
    state, acts = start(model, tokens, n_new, mask, how, keyed=any("key" in names for names in axes.values()))
    kept = None if acts is None else with_room(acts, axes, n_new - 1)

    def going(carry):
        return (carry[0].i < n_new) & ~jnp.all(carry[0].done)

    def step(carry):
        state, out, kept = carry
        after, acts = advance(model, state, how)
        if kept is not None:
            kept = written(kept, acts, axes, tokens.shape[1] + state.i - 1, state.done)
        return after, jax.lax.dynamic_update_index_in_dim(out, after.token, state.i, 0), kept

    out = jnp.broadcast_to(state.token, (n_new, tokens.shape[0]))
    state, out, kept = jax.lax.while_loop(going, step, (state, out, kept))
    out = jnp.where(jnp.arange(n_new)[:, None] < state.i, out, state.token[None, :]).T
    return out if kept is None else (out, kept)


def _asked(model, tokens, n_new, choose, key, stop, penalty) -> tuple[Array, How]:
    """The tokens as an array and how to go on, or a UserError."""
    if n_new < 1:
        raise UserError(f"n_new={n_new} must be at least 1")
    if key is None:
        if not isinstance(choose, Greedy):
            raise UserError(f"{type(choose).__name__} draws at random: give generate a key, jax.random.key(seed)")
        key = jax.random.key(0)
    tokens = jnp.asarray(tokens)
    if tokens.ndim != 2:
        raise UserError(f"tokens have axes (batch, pos), got shape {tokens.shape}; one sequence is tokens[None]")
    check_edits(model, tokens.shape[1], n_new)
    penalty = None if penalty is None else jnp.asarray(penalty, jnp.float32)
    if penalty is not None and not isinstance(penalty, jax.core.Tracer) and not (penalty > 0).all():
        raise UserError(f"repetition_penalty={penalty} must be above 0; 1 is none")
    return tokens, How(choose, key, np.asarray(stop, np.int32).reshape(-1), penalty)
