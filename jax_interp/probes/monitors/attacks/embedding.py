"""A shift of the embeddings at the slots, of bounded length: projected gradient descent (Madry et al. 2017).

No text has these embeddings, so it bounds what tokens can reach only from outside, and a model without the behaviour
can be made to do it with a long enough shift: compare with such a model.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.probes.monitors.attacks.attack import ATTACKS, Attack, Attacked, Objective


@ATTACKS.register
@dataclasses.dataclass(frozen=True)
class EmbeddingAttack(Attack):
    """Projected gradient descent on a shift of each slot's embedding.

    A step moves each slot by `rate` ε against its gradient, and then back to the ball of radius ε.

    Args:
      epsilon: the largest length of a slot's shift, in units of the embeddings.
      steps: the number of steps.
      rate: the length of a step, as a fraction of epsilon.
    """

    epsilon: float = 1.0
    steps: int = 50
    rate: float = 0.1

    def __post_init__(self):
        if not (np.isfinite(self.epsilon) and self.epsilon >= 0 and self.steps >= 1 and self.rate > 0):
            raise UserError(f"epsilon must not be negative, steps at least 1 and rate positive, got {self}")

    @property
    def queries(self) -> int:
        return self.steps + 1

    def run(
        self,
        objective: Objective,
        table: Float[Array, "vocab d"],
        allowed: Int[Array, " allowed"],
        tokens: Int[Array, "example pos"],
        slots: Int[Array, "example slot"],
        key: Key[Array, ""],
    ) -> Attacked:
        row = jnp.arange(len(tokens))[:, None]

        def whole(shift: Array) -> Array:
            zero = jnp.zeros((*tokens.shape, table.shape[1]), table.dtype)
            return zero.at[row, slots].set(shift.astype(table.dtype))

        def total(shift: Array) -> tuple[Array, Array]:
            loss = objective(tokens, whole(shift))
            return jnp.sum(loss), loss

        def step(state: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], Array]:
            shift, best, lowest = state
            (_, loss), gradient = jax.value_and_grad(total, has_aux=True)(shift)
            best, lowest = _better(loss, shift, lowest, best)
            moved = shift - self.rate * self.epsilon * gradient / jnp.maximum(_length(gradient), 1e-30)
            shift = moved * jnp.minimum(1.0, self.epsilon / jnp.maximum(_length(moved), 1e-30))
            return (shift, best, lowest), lowest

        start = jnp.zeros((*slots.shape, table.shape[1]), jnp.float32)
        first = (start, start, jnp.full(len(tokens), jnp.inf, jnp.float32))
        (shift, best, lowest), trace = jax.lax.scan(step, first, None, length=self.steps)
        best, lowest = _better(total(shift)[1], shift, lowest, best)
        return Attacked(tokens, whole(best), lowest, jnp.concatenate([trace, lowest[None]]))


def _length(x: Float[Array, "example slot d"]) -> Float[Array, "example slot 1"]:
    return jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))


def _better(loss: Array, shift: Array, lowest: Array, best: Array) -> tuple[Array, Array]:
    better = loss < lowest  # False for NaN
    return jnp.where(better[:, None, None], shift, best), jnp.where(better, loss, lowest)
