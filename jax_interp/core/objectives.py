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

from jax_interp.core.errors import UserError
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
      targets: the right class of each row, `[...]`. The loss of a target that is no class (-100, -1) is NaN.

    Returns:
      One loss for each row, `[...]`.
    """
    logits = upcast(logits)
    return jax.nn.logsumexp(logits, axis=-1) - of_class(logits, targets)


@partial(jax.jit, inline=True)
def negative_log_likelihood(log_p: Float[Array, "*rows class"], targets: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """-log p(target) in nats, from log probabilities. For code that also uses the log probabilities elsewhere.

    Args:
      log_p: log probabilities, `[..., class]`.
      targets: the right class of each row, `[...]`.

    Returns:
      One loss for each row, `[...]`.
    """
    return -of_class(log_p, targets)


def of_class(values: Float[Array, "*rows class"], classes: Int[Array, "*rows"]) -> Float[Array, "*rows"]:
    """The value of one class in each row; NaN where there is no such class.

    A negative class is not counted from the end: -100 and -1 mark targets to ignore, and `masked_mean` leaves them out.

    Args:
      values: one value for each class, `[..., class]`.
      classes: integers of any width, `[...]`.

    Returns:
      One value for each row, `[...]`.

    Raises:
      UserError: `classes` are not integers.
    """
    if not jnp.issubdtype(classes.dtype, jnp.integer):
        raise UserError(f"targets are integers, the number of a class in each row, got {classes.dtype}")
    index = classes.astype(jnp.int32) if classes.dtype.itemsize < 4 else classes
    index = jnp.where(index < 0, values.shape[-1], index)
    return jnp.take_along_axis(values, index[..., None], axis=-1, mode="fill")[..., 0]


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

    Raises:
      UserError: `keep` has another shape.
    """
    if keep.shape != values.shape:
        raise UserError(f"a mask of shape {keep.shape} cannot choose from values of shape {values.shape}")
    wide = upcast(values)  # a count above 65,504 is infinite in float16
    count = jnp.sum(keep.astype(bool)).astype(wide.dtype)
    count = jnp.maximum(count, jnp.asarray(1, wide.dtype)) if empty_is_zero else count
    return (jnp.sum(jnp.where(keep.astype(bool), wide, jnp.zeros_like(wide))) / count).astype(values.dtype)
