"""Train a toy from a random key, by AdamW. Each step draws new sparse inputs, and one compiled program does all steps.

    def loss(model, key):
        x = sparse_features(key, batch=1024, n=5, probability=0.05)
        return jnp.mean((model(x) - x) ** 2)

    model, losses = train(model, loss, ToyTraining(steps=5000), key)

`train` is an ordinary function of arrays. To train many instances at once, `jax.vmap` it over keys, models, and values
that the loss closes over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Key

from jax_interp.core import optimizers
from jax_interp.core.config_json import reads_older_files
from jax_interp.core.errors import UserError

Params = TypeVar("Params")
LossFn = Callable[[Params, Key[Array, ""]], Float[Array, ""]]


@reads_older_files(called=("Recipe",))
@dataclasses.dataclass(frozen=True)
class ToyTraining:
    """How a toy is trained. Weight decay acts on biases too, as in `torch.optim.AdamW`."""

    steps: int = 5000
    batch: int = 1024
    learning_rate: float = 5e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """The rate over all steps: constant, a line to 0, or half a cosine wave to 0. The warm-up is multiplied in."""
    warm_up: int = 0
    """During this number of first steps, the rate is multiplied by `(step + 1) / warm_up`."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.warm_up < 0:
            raise UserError(f"steps={self.steps}, batch={self.batch} are at least 1, warm_up={self.warm_up} at least 0")

    def rate(self, step: ArrayLike) -> Float[Array, ""]:
        """The learning rate of a step, counted from 0."""
        progress = jnp.asarray(step, jnp.float32) / max(self.steps - 1, 1)
        warmup = optimizers.linear_warmup(step, self.warm_up)
        return self.learning_rate * warmup * optimizers.decay(self.schedule, progress)

    def build(self) -> optax.GradientTransformation:
        """The optax optimizer: AdamW with this schedule."""
        return optax.adamw(self.rate, *self.betas, weight_decay=self.weight_decay)


def train(
    model: Params, loss: LossFn[Params], training: ToyTraining, key: Key[Array, ""]
) -> tuple[Params, Float[Array, "step"]]:
    """Train a pytree for `training.steps` steps.

    Args:
      model: the initial parameters, any pytree of arrays.
      loss: `loss(model, key)` returns a scalar. It draws its batch from the key.
      training: steps, learning rate and schedule.
      key: random key. In step t the loss is called with `fold_in(key, t)`.

    Returns:
      The trained model, and the loss of every step.
    """
    optimizer = training.build()
    steps = jnp.arange(training.steps, dtype=jnp.uint32)
    (model, _), losses = _run(optimizer, loss, key, (model, optimizers.init(optimizer, model)), steps)
    return model, losses


def trajectory(
    model: Params, loss: LossFn[Params], training: ToyTraining, key: Key[Array, ""], every: int
) -> tuple[Params, Float[Array, "step"]]:
    """Train like `train`, but return models from the whole run.

    Args:
      model: the initial parameters.
      loss: see `train`.
      training: see `train`.
      key: see `train`. With the same key the steps are the same as those of `train`.
      every: the number of steps between two models. `training.steps` must be a multiple of it.

    Returns:
      The models before step 0, `every`, 2 `every`, ... and after the last step, stacked on a leading axis; and the loss
      of every step.

    Raises:
      UserError: `every` does not divide the number of steps.
    """
    if training.steps % every:
        raise UserError(f"every={every} does not divide steps={training.steps}")
    optimizer = training.build()
    initial = (model, optimizers.init(optimizer, model))
    steps = jnp.arange(training.steps, dtype=jnp.uint32).reshape(-1, every)

    def stretch(carry: Any, steps: Array) -> tuple[Any, Any]:
        after, losses = _run(optimizer, loss, key, carry, steps)
        return after, (carry[0], losses)

    (last, _), (models, losses) = jax.lax.scan(stretch, initial, steps)
    models = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), models, last)
    return models, losses.reshape(-1)


def _run(
    optimizer: optax.GradientTransformation, loss: LossFn[Params], key: Key[Array, ""], carry: Any, steps: Array
) -> tuple[Any, Array]:
    def step(carry: Any, t: Array) -> tuple[Any, Array]:
        model, state = carry
        value, grads = jax.value_and_grad(loss)(model, jax.random.fold_in(key, t))
        return optimizers.update(optimizer, grads, state, model), value

    return jax.lax.scan(step, carry, steps)


def sparse_features(
    key: Key[Array, ""], batch: int, n: int, probability: ArrayLike, low: float = 0.0, high: float = 1.0
) -> Float[Array, "batch feature"]:
    """Sparse feature vectors. Each entry is on or off independently; an entry that is off is 0.

    One uniform number u gives both the state and the value of an entry: it is on if u < p, and u / p is then uniform in
    [0, 1) (with a resolution of 2^-23 / p in float32).

    Args:
      key: random key.
      batch: number of rows.
      n: number of features.
      probability: the probability that an entry is on; a scalar, or one for each feature.
      low: the smallest value of an entry that is on.
      high: the upper bound of the values, which are uniform in [low, high).

    Returns:
      `[batch, n]`.
    """
    p = jnp.asarray(probability, jnp.float32)
    u = jax.random.uniform(key, (batch, n))
    return jnp.where(u < p, low + (high - low) * (u / jnp.maximum(p, 1e-9)), 0.0)


def one_active(
    key: Key[Array, ""], batch: int, n: int, low: float = 0.0, high: float = 1.0
) -> Float[Array, "batch feature"]:
    """Feature vectors with exactly one entry on (the greatest sparsity).

    Args:
      key: random key.
      batch: number of rows.
      n: number of features.
      low: smallest value of the entry that is on.
      high: upper bound of the values, which are uniform in [low, high).

    Returns:
      `[batch, n]`.
    """
    which, value = jax.random.split(key)
    on = jax.nn.one_hot(jax.random.randint(which, (batch,), 0, n), n)
    return on * jax.random.uniform(value, (batch, 1), minval=low, maxval=high)
