"""Training a toy from a key: AdamW on fresh data, all steps in one compiled program.

    model = train(model, loss, recipe, key)        loss(model, key) -> scalar, drawing its own batch

It is an ordinary function of arrays: `jax.vmap` it over keys, models and whatever the loss closes over to train many
instances at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jax_interp.core import optimizers as optimizing
from jax_interp.core.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a toy is trained. Weight decay acts on biases as well, as `torch.optim.AdamW` has it."""

    steps: int = 5000
    batch: int = 1024
    learning_rate: float = 5e-3
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """As it is, straight down to 0, or half a cosine wave down to 0, over all steps; the warm-up comes on top."""
    warm_up: int = 0
    """Steps over which the schedule's rate is multiplied by `(step + 1) / warm_up`."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.warm_up < 0:
            raise UserError(f"steps={self.steps}, batch={self.batch} are at least 1, warm_up={self.warm_up} at least 0")

    def rate(self, step: Any) -> Float[Array, ""]:
        """The learning rate of a step, counted from 0."""
        t = jnp.asarray(step, jnp.float32)
        done = jnp.clip(t / max(self.steps - 1, 1), 0.0, 1.0)
        fall = {"constant": jnp.ones(()), "linear": 1 - done, "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done))}
        rise = jnp.minimum((t + 1) / self.warm_up, 1.0) if self.warm_up else jnp.ones(())
        return self.learning_rate * rise * fall[self.schedule]

    def build(self) -> Any:
        """The optimizer, of optax."""
        import optax

        return optax.adamw(self.rate, *self.betas, weight_decay=self.weight_decay)


def train(
    model: T, loss: Callable[[T, Key[Array, ""]], Float[Array, ""]], recipe: Recipe, key: Key[Array, ""]
) -> tuple[T, Float[Array, "step"]]:
    """`(model, loss of every step)` after `recipe.steps` steps. Step t's loss sees `fold_in(key, t)`."""
    optimizer = recipe.build()
    steps = jnp.arange(recipe.steps, dtype=jnp.uint32)
    (model, _), losses = _run(optimizer, loss, key, (model, optimizing.init(optimizer, model)), steps)
    return model, losses


def trajectory(
    model: T, loss: Callable[[T, Key[Array, ""]], Float[Array, ""]], recipe: Recipe, key: Key[Array, ""], every: int
) -> tuple[T, Float[Array, "step"]]:
    """`(models, loss of every step)`: as `train`, with the model before step 0, `every`, 2 `every`, ... and at the end,
    on a leading axis. `every` divides the steps.
    """
    if recipe.steps % every:
        raise UserError(f"every={every} does not divide steps={recipe.steps}")
    optimizer = recipe.build()
    start = (model, optimizing.init(optimizer, model))
    steps = jnp.arange(recipe.steps, dtype=jnp.uint32).reshape(-1, every)

    def stretch(carry: Any, steps: Array) -> tuple[Any, Any]:
        after, losses = _run(optimizer, loss, key, carry, steps)
        return after, (carry[0], losses)

    (last, _), (models, losses) = jax.lax.scan(stretch, start, steps)
    models = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), models, last)
    return models, losses.reshape(-1)


def _run(optimizer: Any, loss: Callable, key: Array, carry: Any, steps: Array) -> tuple[Any, Array]:
    def step(carry: Any, t: Array) -> tuple[Any, Array]:
        model, state = carry
        value, grads = jax.value_and_grad(loss)(model, jax.random.fold_in(key, t))
        return optimizing.update(optimizer, grads, state, model), value

    return jax.lax.scan(step, carry, steps)
