"""Pruning (VPD 2026): find the components that one prompt needs. Importances become as small as the prediction allows.

Without an adversary the result is a small but wrong graph: a few components that give the right answer only in the one
combination of masks that was tried. Here an adversary searches for the worst masks of the components that the
importance function calls alive. The masks of all other components are random.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jax_interp.core import optimizers
from jax_interp.core.errors import UserError
from jax_interp.core.objectives import log_probabilities, negative_log_likelihood
from jax_interp.core.pytrees import register_dataclass
from jax_interp.decomposition.importance.base import PerMatrix, read_inputs
from jax_interp.decomposition.losses.adversaries import init_sources, pgd
from jax_interp.decomposition.losses.minimality import lp_minimality
from jax_interp.decomposition.masks import Masks, masked_output, masks_from_sources, stochastic_masks
from jax_interp.decomposition.sigmoids import Sigmoid, sigmoid_pair
from jax_interp.decomposition.train import Trained


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """The settings of `prune`.

    steps, learning_rate: the settings of Adam, which optimises the importances.
    reconstruction: the weight of the label's cross-entropy. It is the mean of random and adversarial masks.
    minimality, p: the weight and the exponent of `lp_minimality`.
    adversary_steps, adversary_step_size: the settings of the sign ascent. With 0 steps there is no adversary.
    delta: whether there is a Δ component.
    """

    steps: int = 300
    learning_rate: float = 0.05
    reconstruction: float = 1.0
    minimality: float = 1e-3
    p: float = 1.0
    adversary_steps: int = 4
    adversary_step_size: float = 0.25
    delta: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.adversary_steps < 0 or not 0 <= self.learning_rate < math.inf:
            raise UserError(
                f"PruneConfig(steps={self.steps}, adversary_steps={self.adversary_steps}, learning_rate="
                f"{self.learning_rate}): at least 1, at least 0, at least 0"
            )


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Pruned:
    """The result of `prune`.

    importance: the importances for the prompts, by entry.
    stochastic_loss, adversarial_loss: the label's cross-entropy at each step, with random and with adversarial masks.
    """

    importance: PerMatrix
    stochastic_loss: Float[Array, " step"]
    adversarial_loss: Float[Array, " step"]

    def nodes(self, threshold: float = 0.0) -> dict[str, Array]:
        """For each matrix, True for the components and positions with an importance above the threshold."""
        return {name: g > threshold for name, g in self.importance.items()}


def prune(
    trained: Trained,
    tokens: Int[Array, "batch pos"],
    label: Int[Array, " batch"],
    config: PruneConfig = PruneConfig(),
    position: int = -1,
) -> Pruned:
    """Find importances for some prompts that are as small as possible while the label stays likely.

    The search starts from the values of the importance function. Components that are dead there at a position stay dead
    and have random masks. The adversary sets the masks of the other components. A second prompt of the same shape does
    not compile again.

    Args:
      trained: the decomposition of a language model.
      tokens: the prompts.
      label: the token to predict for each prompt.
      config: the settings of the search.
      position: the position at which the label is predicted.

    Raises:
      UserError: the position does not exist, or the labels are not one token for each prompt.
    """
    vocabulary = jax.eval_shape(trained.model, tokens).shape[-1]
    if not -tokens.shape[1] <= position < tokens.shape[1]:
        raise UserError(f"position {position}: the prompts have {tokens.shape[1]} tokens")
    if label.shape != tokens.shape[:1] or not np.all((np.asarray(label) >= 0) & (np.asarray(label) < vocabulary)):
        raise UserError(f"label={label}: one token from 0 to {vocabulary - 1} for each of the {len(tokens)} prompts")
    return Pruned(*_pruned(config, position, trained, tokens, label))


Carry = tuple[PerMatrix, optax.OptState]


@partial(jax.jit, static_argnums=(0, 1))
def _pruned(
    config: PruneConfig, position: int, trained: Trained, tokens: Array, label: Array
) -> tuple[PerMatrix, Array, Array]:
    model = trained.model
    lower, upper = sigmoid_pair(trained.sigmoid)
    _, inputs, _ = read_inputs(model, tokens)
    initial = jax.lax.stop_gradient(trained.ci_fn(model, inputs))
    live = {name: (g > 0).astype(jnp.float32) for name, g in initial.items()}
    adam = optax.adam(config.learning_rate)
    key = jax.random.key(config.seed)

    def cross_entropy(masks: Masks) -> Array:
        log_q = log_probabilities(masked_output(model, masks, tokens)[:, position])
        return jnp.mean(negative_log_likelihood(log_q, label))

    def importance_of(phi: PerMatrix, sigmoid: Sigmoid) -> PerMatrix:
        return {name: live[name] * sigmoid(value) for name, value in phi.items()}

    def losses(phi: PerMatrix, key: Array) -> tuple[Array, tuple[Array, Array]]:
        g = importance_of(phi, lower)
        draw, for_sources = jax.random.split(key)
        random = cross_entropy(stochastic_masks(draw, g, delta=config.delta))
        worst = cross_entropy(worst_masks(g, for_sources)) if config.adversary_steps else random
        total = config.reconstruction * 0.5 * (random + worst)
        return total + config.minimality * lp_minimality(importance_of(phi, upper), config.p), (random, worst)

    def worst_masks(g: PerMatrix, key: Array) -> Masks:
        constant = jax.lax.stop_gradient(g)
        fixed = init_sources(key, g, "random", "unique_per_datapoint", config.delta)

        def sources(r: PerMatrix) -> PerMatrix:  # dead components and Δ keep random sources
            wide = {n: jnp.pad(on, [(0, 0)] * (on.ndim - 1) + [(0, int(config.delta))]) for n, on in live.items()}
            return {n: wide[n] * r[n] + (1 - wide[n]) * fixed[n] for n in r}

        climb = lambda r: cross_entropy(masks_from_sources(constant, sources(r)))
        r = pgd(climb, fixed, config.adversary_steps, config.adversary_step_size)
        return masks_from_sources(g, jax.lax.stop_gradient(sources(r)))

    def step(carry: Carry, number: Array) -> tuple[Carry, tuple[Array, Array]]:
        phi, opt = carry
        grads, losses_by_step = jax.grad(losses, has_aux=True)(phi, jax.random.fold_in(key, number))
        return optimizers.update(adam, grads, opt, phi), losses_by_step

    phi = {name: g.astype(jnp.float32) for name, g in initial.items()}
    numbers = jnp.arange(config.steps, dtype=jnp.uint32)
    (phi, _), losses_by_step = jax.lax.scan(step, (phi, optimizers.init(adam, phi)), numbers)
    return importance_of(phi, lower), *losses_by_step
