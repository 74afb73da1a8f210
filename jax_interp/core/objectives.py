"""The objectives for training and evaluation: cross-entropy, KL divergence, and squared error.

Every function computes in at least float32 (`upcast`), takes the class or feature axis last, and returns one value for
each row of the other axes. `masked_mean` then averages the rows to keep. All functions are pure and differentiable.

    losses = cross_entropy(model(tokens)[:, :-1], tokens[:, 1:])     # nats, [batch, pos - 1]
    loss = masked_mean(losses, keep[:, 1:])
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_interp.core.layer import upcast


@partial(jax.jit, inline=True)
def log_probabilities(logits: Float[Array, "*rows class"]) -> Float[Array, "*rows class"]:
    """The logarithm of the softmax over the last axis, in float32 at least.

    Args:
      logits: `[..., class]`, of any floating dtype.

    Returns:
      Log probabilities in nats, `[..., class]`.
    """
    return jax.nn.log_softmax(upcast(logits), axis=-1)


@partial(jax.jit, inline=True)
def cross_entropy(logits: Float[Array, "*rows class"], targets: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """-log p(target) in nats, from logits: `logsumexp(logits) - logits[target]`.

    It does not compute the log probabilities of the other classes, which saves the memory of one array of logits. The
    last bit may differ from `negative_log_likelihood(log_probabilities(logits), targets)`, which adds in another order.

    Args:
      logits: `[..., class]`, of any floating dtype; computed in float32 at least.
      targets: the right class of each row, `[...]`.

    Returns:
      One loss for each row, `[...]`.
    """
    logits = upcast(logits)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


@partial(jax.jit, inline=True)
def negative_log_likelihood(log_p: Float[Array, "*rows class"], targets: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """-log p(target) in nats, from log probabilities. For code that also uses the log probabilities elsewhere.

    Args:
      log_p: log probabilities, `[..., class]`.
      targets: the right class of each row, `[...]`.

    Returns:
      One loss for each row, `[...]`.
    """
    return -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]


@partial(jax.jit, inline=True)
def kl_divergence(log_p: Float[Array, "*rows class"], log_q: Float[Array, "*rows class"]) -> Float[Array, "*rows"]:
    """KL(p ‖ q) = Σ p (log p - log q) in nats, from log probabilities.

    A class with p = 0 adds 0, also where q = 0 (a class that is masked out in both). A class with q = 0 and p > 0 makes
    the divergence infinite.

    Args:
      log_p: log probabilities of the reference, `[..., class]`.
      log_q: log probabilities of the other distribution, `[..., class]`.

    Returns:
      One divergence for each row, `[...]`.
    """
    p = jnp.exp(log_p)
    # The difference is replaced before the product: -inf - -inf would be NaN, in the gradient too.
    difference = jnp.where(log_p == -jnp.inf, jnp.zeros_like(log_p), log_p - log_q)
    return jnp.sum(p * difference, axis=-1)


@partial(jax.jit, inline=True, static_argnames="axis")
def mean_squared_error(target: Array, output: Array, axis: int | tuple[int, ...] | None = -1) -> Array:
    """The mean of `(target - output)²` over `axis`, in float32 at least.

    Args:
      target: values of any shape and floating dtype.
      output: values of the same shape.
      axis: the axes that are averaged. None: all axes, which gives one number.

    Returns:
      One error for each row of the other axes.
    """
    return jnp.mean((upcast(target) - upcast(output)) ** 2, axis=axis)


@partial(jax.jit, inline=True, static_argnames="empty_is_zero")
def masked_mean(values: Float[Array, "*rows"], keep: Bool[Array, "*rows"], empty_is_zero: bool = False) -> Array:
    """The mean of the values where `keep` is True. A NaN where `keep` is False has no effect.

    Args:
      values: one value for each row.
      keep: which rows are averaged, in the shape of `values`.
      empty_is_zero: if no row is kept, return 0 instead of NaN. `training.fit` stops at a NaN.

    Returns:
      A scalar of the dtype of `values`.
    """
    count = jnp.sum(keep).astype(values.dtype)
    count = jnp.maximum(count, jnp.asarray(1, values.dtype)) if empty_is_zero else count
    return jnp.sum(jnp.where(keep, values, jnp.zeros_like(values))) / count
