"""Faithfulness: the components of a matrix add up to it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jax_interp.core import optimizers
from jax_interp.decomposition.components import Decomposed
from jax_interp.decomposition.importance.base import PerMatrix
from jax_interp.decomposition.losses.base import LOSSES, Loss, LossInputs, relative_errors


def faithfulness(model: Decomposed) -> Float[Array, ""]:
    """`Σ_l ‖W_l - V_l U_l‖²_F / N`, where N is the number of decomposed weights (SPD 2025)."""
    deltas = [model.delta(name) for name in model.names]
    return sum((jnp.sum(d * d) for d in deltas), jnp.zeros(())) / sum(d.size for d in deltas)


def relative_faithfulness(model: Decomposed) -> Float[Array, ""]:
    """The mean over matrices of `‖W - V U‖²_F / ‖W‖²_F` (the JAX code of 2026).

    For a matrix of zeros the divisor is the largest ‖W‖²_F of all matrices (see `relative_errors`).
    """
    square = lambda m: jnp.sum(m * m, axis=(-1, -2))
    errors = {name: square(model.delta(name)) for name in model.names}
    sizes = {name: square(model.weight(name).astype(jnp.float32)) for name in model.names}
    ratios = relative_errors(errors, sizes)
    return jnp.mean(jnp.concatenate([jnp.atleast_1d(ratio) for ratio in ratios.values()]))


@LOSSES.register
@dataclasses.dataclass(frozen=True)
class Faithfulness(Loss):
    """The loss `faithfulness`, or `relative_faithfulness` if `relative` is True."""

    coefficient: float = 1.0
    relative: bool = False

    def __call__(self, inputs: LossInputs, key: Key[Array, ""], sources: PerMatrix | None = None) -> Float[Array, ""]:
        return relative_faithfulness(inputs.model) if self.relative else faithfulness(inputs.model)


def warm_up(model: Decomposed, steps: int, learning_rate: float, weight_decay: float) -> Decomposed:
    """Train V and U by AdamW with faithfulness as the only loss, and return the model.

    Args:
      model: the decomposed model.
      steps: the number of steps.
      learning_rate, weight_decay: the settings of AdamW.
    """
    adam = optax.adamw(learning_rate, weight_decay=weight_decay)

    def loss(components, target):
        return faithfulness(dataclasses.replace(model, target=target, components=components))

    def run(components, target):
        def step(_, state):
            components, opt = state
            return optimizers.update(adam, jax.grad(loss)(components, target), opt, components)

        return jax.lax.fori_loop(0, steps, step, (components, optimizers.init(adam, components)))[0]

    return dataclasses.replace(model, components=jax.jit(run)(model.components, model.target))
