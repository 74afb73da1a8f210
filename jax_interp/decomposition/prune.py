"""The components that one prompt needs: importances of its own, made as small as the prediction allows (VPD 2026).

Without an adversary such a search ends in tiny, seductive graphs that do not do what they seem to: a few components
that give the right answer while all others are off at once, in the one combination that was tried. Here the others are
at random, and among those that the importance function calls alive an adversary looks for the worst.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jax_interp.core import optimizers as optimizer
from jax_interp.core.objectives import log_probabilities, negative_log_likelihood
from jax_interp.decomposition.importance.inputs import PerMatrix, read_inputs
from jax_interp.decomposition.losses.adversary import pgd, started
from jax_interp.decomposition.losses.minimality import lp_minimality
from jax_interp.decomposition.masks import between, masked_output, stochastic
from jax_interp.decomposition.sigmoids import SIGMOIDS
from jax_interp.decomposition.train import Trained


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """`reconstruction` weighs the cross-entropy of the wanted token, half under random and half under adversarial
    masks; `adversary_steps=0` leaves the adversary out."""

    steps: int = 300
    learning_rate: float = 0.05
    reconstruction: float = 1.0
    minimality: float = 1e-3
    p: float = 1.0
    adversary_steps: int = 4
    adversary_step_size: float = 0.25
    delta: bool = True
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pruned:
    """`importance` are the prompt's own; the losses cross-entropies, by step, under random and adversarial masks."""

    importance: PerMatrix
    stochastic_loss: Float[Array, " step"]
    adversarial_loss: Float[Array, " step"]

    def nodes(self, threshold: float = 0.0) -> dict[str, Array]:
        """Which components at which positions are left."""
        return {name: g > threshold for name, g in self.importance.items()}


def prune(
    trained: Trained,
    tokens: Int[Array, "batch pos"],
    label: Int[Array, " batch"],
    config: PruneConfig = PruneConfig(),
    position: int = -1,
) -> Pruned:
    """Importances of these prompts that keep `label` likely at `position`, starting from those of the importance
    function. Components that it calls dead at a position stay dead; their masks are random all along, those of the
    living the adversary may set. Another prompt of the same shape compiles nothing."""
    return Pruned(*_pruned(config, position, trained, tokens, label))


@partial(jax.jit, static_argnums=(0, 1))
def _pruned(config: PruneConfig, position: int, trained: Trained, tokens: Array, label: Array) -> Any:
    model = trained.model
    lower, upper = SIGMOIDS[trained.sigmoid]
    _, inputs, _ = read_inputs(model, tokens)
    gates = jax.lax.stop_gradient(trained.gates(model, inputs))
    living = {name: (g > 0).astype(jnp.float32) for name, g in gates.items()}
    adam = optax.adam(config.learning_rate)
    key = jax.random.key(config.seed)

    def cross_entropy(masks: Any) -> Array:
        log_q = log_probabilities(masked_output(model, masks, tokens)[:, position])
        return jnp.mean(negative_log_likelihood(log_q, label))

    def importance_of(phi: PerMatrix, sigmoid: Any) -> PerMatrix:
        return {name: living[name] * sigmoid(value) for name, value in phi.items()}

    def losses(phi: PerMatrix, key: Array) -> tuple[Array, tuple[Array, Array]]:
        g = importance_of(phi, lower)
        draw, start = jax.random.split(key)
        random = cross_entropy(stochastic(draw, g, delta=config.delta))
        worst = cross_entropy(worst_masks(g, start)) if config.adversary_steps else random
        total = config.reconstruction * 0.5 * (random + worst)
        return total + config.minimality * lp_minimality(importance_of(phi, upper), config.p), (random, worst)

    def worst_masks(g: PerMatrix, key: Array) -> Any:
        still = jax.lax.stop_gradient(g)
        fixed = started(key, g, "random", "unique_per_datapoint", config.delta)

        def sources(r: PerMatrix) -> PerMatrix:  # the adversary moves the living; the dead and Δ stay as drawn
            wide = {n: jnp.pad(on, [(0, 0)] * (on.ndim - 1) + [(0, int(config.delta))]) for n, on in living.items()}
            return {n: wide[n] * r[n] + (1 - wide[n]) * fixed[n] for n in r}

        climb = lambda r: cross_entropy(between(still, sources(r)))
        r = pgd(climb, fixed, config.adversary_steps, config.adversary_step_size)
        return between(g, jax.lax.stop_gradient(sources(r)))

    def step(carry: Any, number: Array) -> tuple[Any, tuple[Array, Array]]:
        phi, opt = carry
        grads, seen = jax.grad(losses, has_aux=True)(phi, jax.random.fold_in(key, number))
        return optimizer.update(adam, grads, opt, phi), seen

    phi = {name: g.astype(jnp.float32) for name, g in gates.items()}
    numbers = jnp.arange(config.steps, dtype=jnp.uint32)
    (phi, _), seen = jax.lax.scan(step, (phi, optimizer.init(adam, phi)), numbers)
    return importance_of(phi, lower), *seen
