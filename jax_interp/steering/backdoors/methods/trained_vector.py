"""Latents near a steering vector that is trained to produce the target.

    min over ‖v‖ ≤ R of  L(target | prompts, v added at the request)         score(i) = cos(v, d_i) (L(0) - L(v))

Some vector produces the target in any model. So the score has both the fall of the loss and how well a latent names the
vector, and the null says how high it is in a model without the backdoor.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jax_interp.core.errors import UserError
from jax_interp.steering.backdoors.audit import AuditTexts, target_losses
from jax_interp.steering.backdoors.method import METHODS, Ranking, Suspect, TriggerMethod, ranked
from jax_interp.steering.backdoors.methods.measured import mean_norm
from jax_interp.steering.vector import SteeringVector
from jax_interp.surgery import Add, Model, at, values_at
from jax_interp.training.placement import automatic


@METHODS.register
@dataclasses.dataclass(frozen=True)
class TrainedVector(TriggerMethod):
    """Latents by their cosine with a trained vector, times the fall of the loss.

    A step moves the vector by `rate` R against its gradient, and then back to the ball of radius R. One compiled
    program does all steps.

    Args:
      radius: R, in units of the mean norm of the value. Take the smallest one that produces the target: a longer vector
        has room for directions that have nothing to do with the trigger, and its nearest latent is another one.
      steps: the number of steps.
      rate: the length of a step, as a share of R.
    """

    radius: float = 0.25
    steps: int = 60
    rate: float = 0.1

    def __post_init__(self) -> None:
        if not (np.isfinite(self.radius) and self.radius > 0) or self.steps < 1 or not self.rate > 0:
            raise UserError(f"radius and rate must be above 0, and steps at least 1: {self}")

    def rank(self, suspect: Suspect, audit: AuditTexts, key: Key[Array, ""]) -> Ranking:
        directions = np.asarray(suspect.directions(), np.float64)
        vector, before, after = self.train(suspect, audit)
        v = np.asarray(vector.vectors[suspect.address], np.float64)
        if v.shape[0] != directions.shape[1]:
            raise UserError(f"the value is {v.shape[0]} wide, and the dictionary writes {directions.shape[1]}")
        lengths = np.linalg.norm(directions, axis=1) * np.linalg.norm(v)
        cosine = directions @ v / np.where(lengths == 0, 1.0, lengths)
        ids = [(i,) for i in range(len(cosine))]
        return ranked(type(self).__name__, "latent", ids, cosine * (before - after), "nats times cosine")

    def train(self, suspect: Suspect, audit: AuditTexts) -> tuple[SteeringVector, float, float]:
        """(the vector, the loss of the target without it, and with it)."""
        tokens, weight, request = map(jnp.asarray, (audit.texts.tokens, audit.texts.weight, audit.request))
        radius = jnp.float32(self.radius * mean_norm(suspect, audit))
        found, before, after = _descend(self, suspect.address, suspect.model, tokens, weight, request, radius)
        return SteeringVector({suspect.address: found}), float(before), float(after)


@functools.partial(jax.jit, static_argnums=(0, 1))
@automatic
def _descend(
    how: TrainedVector, address: str, model: Model, tokens: Array, weight: Array, request: Array, radius: Array
) -> tuple[Float[Array, " d"], Float[Array, ""], Float[Array, ""]]:
    width = jax.eval_shape(values_at(model, address), tokens)[address].shape[-1]

    def loss(vector: Array) -> Array:
        return jnp.mean(target_losses(model, tokens, weight, at(address, Add(vector), where=request)))

    def step(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        vector, best, lowest = carry
        value, slope = jax.value_and_grad(loss)(vector)
        best, lowest = jnp.where(value < lowest, vector, best), jnp.minimum(lowest, value)
        moved = vector - how.rate * radius * slope / jnp.maximum(jnp.linalg.norm(slope), 1e-30)
        return moved * jnp.minimum(1.0, radius / jnp.maximum(jnp.linalg.norm(moved), 1e-30)), best, lowest

    zero = jnp.zeros(width, jnp.float32)
    vector, best, lowest = jax.lax.fori_loop(0, how.steps, step, (zero, zero, jnp.float32(jnp.inf)))
    last = loss(vector)
    return jnp.where(last < lowest, vector, best), loss(zero), jnp.minimum(last, lowest)
