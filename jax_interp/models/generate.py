"""Generation: one compiled program that reads a batch of prompts and then writes token by token, with a KV cache.

It takes any model that keeps `Decoder`'s way with a cache, edited ones too: edits act while it generates, at the
prompt's positions and at the new ones, which are absolute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_interp.errors import UserError
from jax_interp.models.sampling import Greedy
from jax_interp.surgery import Read, Tapped

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
    tokens: Int[Array, "batch pos"],
    n_new: int,
    *,
    mask: Bool[Array, "batch pos"] | None = None,
    choose: Callable = GREEDY,
    key: Array | None = None,
    stop: Sequence[int] = (),
) -> Int[Array, "batch {n_new}"]:
    """`n_new` tokens after each prompt.

    Args:
      model: a `Decoder`, or an edit of one.
      tokens, mask: the prompts; where they differ in length, padded (`pad_left`), `mask` saying what is real.
      n_new: how many tokens are written. Changing it, or the prompts' shape, compiles anew; edits, the chooser's
        numbers, the key and the stop tokens are data.
      choose: `Greedy()`, `Sample(temperature, top_k, top_p)`, or any callable pytree `(key, logits) -> tokens`.
      key: for a chooser that draws; each step has a key of its own.
      stop: token ids that end a row. From there on the row repeats the one it stopped at; the program ends when all
        rows have stopped.
    """
    if _reads(model):
        raise UserError(
            "generate returns tokens and has no place for what is read: give it the model without read(...)"
        )
    if n_new < 1:
        raise UserError(f"n_new={n_new} must be at least 1")
    if key is None:
        if not isinstance(choose, Greedy):
            raise UserError(f"{type(choose).__name__} draws at random: give generate a key, jax.random.key(seed)")
        key = jax.random.key(0)
    return _generate(model, jnp.asarray(tokens), n_new, mask, choose, key, np.asarray(stop, np.int32).reshape(-1))


@partial(jax.jit, static_argnames="n_new")
def _generate(model, tokens, n_new, mask, choose, key, stop):
    batch, pos = tokens.shape
    logits, cache = model(tokens, mask=mask, cache=pos + n_new)
    if mask is None:
        logits = logits[:, -1]
    else:  # of each row's last real token
        last = jnp.cumsum(mask, axis=1) == jnp.sum(mask, axis=1, keepdims=True)
        logits = jnp.sum(jnp.where((last & mask)[:, :, None], logits, 0), axis=1)

    def pick(i, logits):
        return choose(jax.random.fold_in(key, i), logits.astype(jnp.float32)).astype(tokens.dtype)

    def is_stop(token):
        return jnp.any(token[:, None] == stop[None, :], axis=1)

    def going(carry):
        i, _, done, _, _ = carry
        return (i < n_new) & ~jnp.all(done)

    def step(carry):
        i, token, done, out, cache = carry
        logits, cache = model(token[:, None], cache=cache)
        token = jnp.where(done, token, pick(i, logits[:, 0]))
        return i + 1, token, done | is_stop(token), jax.lax.dynamic_update_index_in_dim(out, token, i, 0), cache

    first = pick(0, logits)
    out = jnp.broadcast_to(first, (n_new, batch))
    carry = (jnp.int32(1), first, is_stop(first), out, cache)
    i, last, _, out, _ = jax.lax.while_loop(going, step, carry)
    return jnp.where(jnp.arange(n_new)[:, None] < i, out, last[None, :]).T


def _reads(model: Callable) -> bool:
    return isinstance(model, Tapped) and (any(isinstance(tap, Read) for tap in model.taps) or _reads(model.model))
