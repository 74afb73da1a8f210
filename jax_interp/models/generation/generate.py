"""Generation: a batch of prompts is continued token by token, with a KV cache.

`generate` is one compiled program. `stream` is a loop over the same step that yields tokens as they are chosen. Both
take a `Decoder`, also under surgery: an edit acts on the positions of the prompt and on the new ones, and values that
are read are kept for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.errors import UserError
from jax_interp.models.cache import Cache, empty_cache
from jax_interp.models.generation.generated_values import axes_of, check_edits, has_reads, padded, with_step
from jax_interp.models.generation.sampling import Chooser, Greedy, Number, penalized, seen_tokens
from jax_interp.surgery import Activations
from jax_interp.surgery.contract import Model

GREEDY = Greedy()


def pad_left(prompts: Sequence[Sequence[int]]) -> tuple[Int[np.ndarray, "batch pos"], Bool[np.ndarray, "batch pos"]]:
    """Prompts of different lengths as arrays `(tokens, mask)`, both `[batch, pos]`, padded on the left with token 0.

    Raises:
      UserError: a prompt has no token.
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

    Another `n_new`, or prompts of another shape, compile anew. Edits, the numbers of the chooser, the key, the penalty
    and the stop tokens are data.

    Args:
      model: a `Decoder`, with any edits and reads.
      tokens: the prompts, `[batch, pos]`. Prompts of different lengths are padded (`pad_left`).
      n_new: the number of tokens to write.
      mask: True where a token of the prompts is real; None: all are.
      choose: how a token is chosen: `Greedy()`, `Sample(...)`, or any callable pytree `(key, logits) -> tokens`.
      key: a PRNG key, for a chooser that draws. Each step derives a key of its own from it.
      stop: token ids that end a row. The row then repeats its stop token. The program ends when all rows have stopped.
      repetition_penalty: makes tokens that are in the row already, prompt included, less likely (see
        `sampling.penalized`). 1 changes nothing.

    Returns:
      The new tokens, `[batch, n_new]`. Where the model reads values: `(tokens, Activations)`. The values have
      `pos + n_new - 1` positions, those of the prompts and of the new tokens but the last, which never goes through
      the model. At a stop token and after it the values of a row are zero. A key axis (`attn.pattern`) has the same
      length. A row whose logits are NaN, as after an edit with a traced index out of range, has tokens -1.

    Raises:
      UserError: the chooser draws and there is no key, `n_new` is less than 1, or an edit names a position that the
        model never sees.

    Example:

        tokens, mask = pad_left([tokenizer.encode(text, bos=True) for text in texts])
        steered = edit(model, at("blocks.3.resid_post", Add(vector)))
        new = generate(steered, tokens, 20, mask=mask, choose=Sample(temperature=0.8), key=jax.random.key(0))
    """
    tokens, sampling = _checked(model, tokens, n_new, choose, key, stop, repetition_penalty)
    return _generate(model, tokens, n_new, mask, sampling)


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
    """The tokens that `generate` writes, one column at a time, as they are chosen.

    It ends when all rows have stopped, or when the caller stops iterating. Each token is one dispatch.

    Args:
      model: a `Decoder`, with any edits.
      tokens: as in `generate`, like all other arguments.
      n_new: the number of tokens to write.
      mask: True where a token of the prompts is real.
      choose: how a token is chosen.
      key: a PRNG key, for a chooser that draws.
      stop: token ids that end a row.
      repetition_penalty: makes tokens that are in the row already less likely.

    Returns:
      An iterator of token ids `[batch]`.

    Raises:
      UserError: as `generate`; also where the model reads values, which `stream` cannot return.

    Example:

        for column in stream(model, tokens, 20, mask=mask):
            print(tokenizer.decode(column[:1]), end="", flush=True)
    """
    if has_reads(model):
        raise UserError("stream gives tokens only: use generate, which returns the values that are read as well")
    tokens, sampling = _checked(model, tokens, n_new, choose, key, stop, repetition_penalty)

    def columns() -> Iterator[np.ndarray]:
        state = _first(model, tokens, n_new, mask, sampling)
        for i in range(n_new):
            token, stopped = np.array(state.token), np.array(state.stopped)  # copies: the state's memory is donated
            yield token
            if stopped.all() or i + 1 == n_new:
                return
            state = _next(model, state, sampling)

    return columns()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """What decides the next token besides the model. Everything is data, except the class of the chooser."""

    choose: Chooser
    key: Array
    stop: Int[Array | np.ndarray, "stops"]
    penalty: Float[Array, ""] | None

    def next_token(
        self, i: Int[Array, ""], logits: Float[Array, "batch 1 vocab"], seen: Bool[Array, "batch vocab"] | None
    ) -> Int[Array, "batch"]:
        """The `i`-th new token of every row."""
        logits = logits[:, 0].astype(jnp.float32)
        if seen is not None and self.penalty is not None:
            logits = penalized(logits, seen, self.penalty)
        token = self.choose(jax.random.fold_in(self.key, i), logits)
        return jnp.where(jnp.any(jnp.isnan(logits), axis=-1), -1, token)

    def is_stop(self, token: Int[Array, "batch"]) -> Bool[Array, "batch"]:
        """Which rows stop at this token."""
        return jnp.any(token[:, None] == self.stop[None, :], axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GenerationState:
    """The state after `count` new tokens."""

    count: Int[Array, ""]
    token: Int[Array, "batch"]
    """The last token of each row. The model has not seen it yet."""
    stopped: Bool[Array, "batch"]
    cache: Cache
    seen: Bool[Array, "batch vocab"] | None
    """Which tokens are in each row already; None without a penalty."""


def prefill(
    model: Any, tokens: Array, n_new: int, mask: Array | None, sampling: Sampling, keyed: bool
) -> tuple[GenerationState, Activations | None]:
    """Run the prompts and choose the first token; also gives the values that are read.

    `keyed`: a value with a key axis is read. Its key axis then has the slots of the whole cache from the start.
    """
    slots = tokens.shape[1] + n_new - 1  # the last token never goes through the model
    begin: Cache | int = slots
    if keyed:
        real = jnp.ones_like(tokens) if mask is None else mask
        begin = empty_cache(model.blocks, tokens, slots, jnp.sum(real, axis=1, keepdims=True, dtype=jnp.int32))
    out = model(tokens, mask=mask, cache=begin, last_only=True)
    (logits, cache), acts = out if has_reads(model) else (out, None)
    seen = None if sampling.penalty is None else seen_tokens(tokens, mask, logits.shape[-1])
    token = sampling.next_token(jnp.int32(0), logits, seen).astype(tokens.dtype)
    return GenerationState(jnp.int32(1), token, sampling.is_stop(token), cache, seen), acts


def decode_step(model: Model, state: GenerationState, sampling: Sampling) -> tuple[GenerationState, Activations | None]:
    """Run the last tokens and choose the next; also gives the values that are read."""
    out = model(state.token[:, None], cache=state.cache, last_only=True)
    (logits, cache), acts = out if has_reads(model) else (out, None)
    seen = state.seen
    if seen is not None:
        ids = jnp.arange(seen.shape[1], dtype=state.token.dtype)
        seen = seen | (ids[None, :] == state.token[:, None])
    chosen = sampling.next_token(state.count, logits, seen).astype(state.token.dtype)
    token = jnp.where(state.stopped, state.token, chosen)
    return GenerationState(state.count + 1, token, state.stopped | sampling.is_stop(token), cache, seen), acts


@partial(jax.jit, static_argnames="n_new")
def _first(model, tokens, n_new, mask, sampling):
    return prefill(model, tokens, n_new, mask, sampling, keyed=False)[0]


@partial(jax.jit, donate_argnames="state")
def _next(model, state, sampling):
    return decode_step(model, state, sampling)[0]


@partial(jax.jit, static_argnames="n_new")
def _generate(model, tokens, n_new, mask, sampling):
    axes = axes_of(model, tokens, mask)
    keyed = any("key" in names for names in axes.values())
    state, acts = prefill(model, tokens, n_new, mask, sampling, keyed)
    values = None if acts is None else padded(acts, axes, n_new - 1)

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
    model: Model,
    tokens: Array | np.ndarray,
    n_new: int,
    choose: Chooser,
    key: Array | None,
    stop: Sequence[int],
    penalty: Number | None,
) -> tuple[Array, Sampling]:
    """The tokens as an array and the sampling. Raises `UserError` for what cannot be generated."""
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
        raise UserError(f"repetition_penalty={penalty} must be above 0; 1 changes nothing")
    return tokens, Sampling(choose, key, np.asarray(stop, np.int32).reshape(-1), penalty)
