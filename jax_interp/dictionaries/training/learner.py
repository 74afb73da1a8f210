"""The state of a dictionary in training, its optimizer, and the metrics of a step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from jax_interp.core import optimizers
from jax_interp.core.leaves import PyTree
from jax_interp.core.pytrees import register_dataclass
from jax_interp.data.harvest import Stream, TokenBatch, later_positions
from jax_interp.dictionaries.activations import Activation
from jax_interp.dictionaries.training.config import Adam

Trained = TypeVar("Trained")

BatchAt = Callable[[int], TokenBatch]
"""A function from the index of a batch, from 0, to (tokens [seq, pos], keep [seq, pos])."""


def without_first(batch_at: BatchAt, skip_first: int) -> BatchAt:
    """The batches of `batch_at`, without the first `skip_first` positions of every sequence."""

    def later(i: int) -> TokenBatch:
        tokens, keep = batch_at(i)
        return tokens, later_positions(keep, skip_first)

    return later if skip_first else batch_at


PRECISION = {"float32": "F32_F32_F32", "bfloat16": "BF16_BF16_F32"}


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Learner(Generic[Trained]):
    """The state of a dictionary in training. The next step depends only on it and on the batch.

    Attributes:
      dictionary: a `Dictionary` or a `CrossLayer`, for scaled values.
      opt: the state of the optimizer.
      since_fired: for each latent, the number of tokens since it last fired, up to about 2³⁰. The shape is [feature],
        or [source, feature] for a `CrossLayer`.
      step: the number of steps done.
      key: the random key of the next step.
    """

    dictionary: Trained
    opt: PyTree
    since_fired: PyTree
    step: Int[Array, ""]
    key: Key[Array, ""]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState(Generic[Trained]):
    """A learner and the stream of shuffled activations that it learns from."""

    learner: Learner[Trained]
    stream: Stream


def kind_of(address: str) -> str:
    """What a leaf of a training state is, for `training.planning`: trained, optimizer, buffer or state."""
    parts = address.split(".")
    if "opt" in parts:
        return "optimizer"
    if "buffer" in parts:
        return "buffer"
    return "trained" if "dictionary" in parts else "state"


def adam(
    config: Adam, steps: int, learning_rate: Float[Array, ""] | None = None, unit: Float[Array, ""] | float = 1.0
) -> optax.GradientTransformation:
    """An optax optimizer: clipping, then Adam with its schedule.

    Args:
      config: the settings.
      steps: the number of steps of the run.
      learning_rate: replaces that of the config. It may be traced.
      unit: the number by which the loss divides the squared error (`sse_unit`). `clip` is divided by it too. It may be
        traced.
    """
    decay = max(round(config.decay * steps), 1)
    peak = config.learning_rate if learning_rate is None else learning_rate

    def rate(count: Any) -> Float[Array, ""]:
        down = (steps - count.astype(jnp.float32)) / decay
        return peak * jnp.clip(jnp.minimum(optimizers.linear_warmup(count, config.warmup), down), 0.0, 1.0)

    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip / unit)
    return optax.chain(clip, optax.adam(rate, b1=config.b1, b2=config.b2, eps=config.eps))


def lowered_rate(optimizer: Adam, rate_scale: Float[Array, ""] | None) -> Float[Array, ""] | None:
    """The peak learning rate times `rate_scale`, for `adam`. None for None, which means the rate of the config."""
    return None if rate_scale is None else optimizer.learning_rate * rate_scale


def offset_rate(optimizer: Adam, activation: Activation, d: int) -> float:
    """The value of `Adam.offset_rate` for an input of width `d`, with its default resolved."""
    if optimizer.offset_rate is not None:
        return optimizer.offset_rate
    return d**0.5 if activation.k is None else 1.0


def matmul_precision(matmul: str | None) -> AbstractContextManager[object]:
    """A context manager that sets the precision of matrix products to `DictionaryConfig.matmul`."""
    return contextlib.nullcontext() if matmul is None else jax.default_matmul_precision(PRECISION[matmul])


def step_metrics(
    loss: Float[Array, ""],
    terms: dict[str, Float[Array, ""]],
    y: Float[Array, "row d_out"],
    error: Float[Array, "row d_out"],
    fires: Int[Array, "..."],
    dead: Array,
    step: Int[Array, ""],
) -> dict[str, Array]:
    """The metrics of one batch, before the update.

    They are `loss` and each of its terms, `fvu` (with the mean of the batch as the centre), `l0` (the mean number of
    latents on per row, for all sources together), `dead` (the number of dead latents), and `tokens` (trained on so
    far).
    """
    centred = y - jnp.mean(y, axis=0, keepdims=True)
    return terms | {
        "loss": loss,
        "fvu": jnp.sum(error * error) / jnp.sum(centred * centred),
        "l0": jnp.sum(fires.astype(y.dtype)) / y.shape[0],  # rows times features can be more than an int32 holds
        "dead": jnp.sum(dead),
        "tokens": step.astype(jnp.uint32) * jnp.uint32(y.shape[0]),  # wraps at 2³²; the log has the exact number
    }
