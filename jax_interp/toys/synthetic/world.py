"""Activations whose features are known: x = codes · directions + bias.

    x, codes = world.sample(key, n)            pure; the same key gives the same rows

A world is a pytree: it is an argument of a jitted step, which then draws its own data on the device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.unit_rows import unit_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class World:
    """`codes(key, n) -> [n, feature]` is a callable pytree (firing.py, toys.py). Several values of a model, or of two,
    stand side by side in the last axis, as a crosscoder reads them."""

    directions: Float[Array, "feature d"]
    bias: Float[Array, " d"]
    codes: Any

    @property
    def n_features(self) -> int:
        return self.directions.shape[0]

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n d"], Float[Array, "n feature"]]:
        codes = self.codes(key, n)
        return codes @ self.directions + self.bias[None, :], codes


def gaussian_directions(key: Key[Array, ""], n_features: int, d: int) -> Float[Array, "feature d"]:
    """Uniform on the unit sphere."""
    return unit_rows(jax.random.normal(key, (n_features, d)))


def orthonormal_directions(key: Key[Array, ""], n_features: int, d: int) -> Float[Array, "feature d"]:
    """A random orthonormal system. UserError where d has no room for it."""
    if n_features > d:
        raise UserError(f"{n_features} orthonormal directions in {d} dimensions: at most {d}, or orthogonalised ones")
    return jnp.linalg.qr(jax.random.normal(key, (d, n_features)))[0].T


def orthogonalised_directions(
    key: Key[Array, ""], n_features: int, d: int, steps: int = 100, learning_rate: float = 3e-4
) -> Float[Array, "feature d"]:
    """Random unit directions pushed apart: Adam on Σ_{i≠j} (e_i·e_j)² + n Σ (‖e_i‖² - 1)², the loss of SynthSAEBench.

    The sum over pairs is ‖EᵀE‖² - Σ ‖e_i‖⁴, a matter of n·d² operations and d² floats, not of n².
    """

    def loss(E):
        square = jnp.sum(E * E, axis=1)
        gram = jnp.matmul(E.T, E, precision=jax.lax.Precision.HIGHEST)
        return jnp.sum(gram * gram) - jnp.sum(square * square) + n_features * jnp.sum((square - 1) ** 2)

    adam = optax.adam(learning_rate)

    def step(carry, _):
        E, state = carry
        return optimizer.update(adam, jax.grad(loss)(E), state, E), None

    E = gaussian_directions(key, n_features, d)
    (E, _), _ = jax.lax.scan(step, (E, optimizer.init(adam, E)), None, length=steps)
    return unit_rows(E)
