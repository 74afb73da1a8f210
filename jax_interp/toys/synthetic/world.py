"""Activations whose features are known: x = codes · directions + bias.

    x, codes = world.sample(key, n)            pure; the same key gives the same rows

A world is a pytree. A jitted step can take it as an argument and draw data on the device. `as_model` makes a model from
a world, so that a dictionary can be trained on it as on any model:

    model, batch_at = as_model(world, jax.random.key(0))
    sae = train_dictionary(variants.topk("x", k=3, n_features=64, steps=1000), model, batch_at)
    score(sae, world, jax.random.key(1))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from jax_interp.core import optimizers as optimizer
from jax_interp.core.errors import UserError
from jax_interp.core.optimizers import unit_rows
from jax_interp.core.pytrees import register_dataclass
from jax_interp.surgery import Site


@register_dataclass
@dataclasses.dataclass(frozen=True)
class World:
    """Features with known directions, and a distribution of their codes.

    `codes(key, n)` returns `[n, feature]`. It is a callable pytree (firing.py, small_worlds.py). Several values of one
    or two models are concatenated in the last axis of x, as a crosscoder reads them.
    """

    directions: Float[Array, "feature d"]
    bias: Float[Array, " d"]
    codes: Callable[[Key[Array, ""], int], Float[Array, "n feature"]]

    @property
    def n_features(self) -> int:
        """The number of features."""
        return self.directions.shape[0]

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n d"], Float[Array, "n feature"]]:
        """`n` rows of activations and their codes. The same key gives the same rows."""
        codes = self.codes(key, n)
        return codes @ self.directions + self.bias[None, :], codes


def gaussian_directions(key: Key[Array, ""], n_features: int, d: int) -> Float[Array, "feature d"]:
    """Random directions, uniform on the unit sphere."""
    return unit_rows(jax.random.normal(key, (n_features, d)))


def orthonormal_directions(key: Key[Array, ""], n_features: int, d: int) -> Float[Array, "feature d"]:
    """Random orthonormal directions. Raises UserError if there are more features than dimensions."""
    if n_features > d:
        raise UserError(f"{n_features} orthonormal directions in {d} dimensions: at most {d}, or orthogonalised ones")
    return jnp.linalg.qr(jax.random.normal(key, (d, n_features)))[0].T


def orthogonalised_directions(
    key: Key[Array, ""], n_features: int, d: int, steps: int = 100, learning_rate: float = 3e-4
) -> Float[Array, "feature d"]:
    """Random unit directions made nearly orthogonal: Adam on Σ_{i≠j} (e_i·e_j)² + n Σ (‖e_i‖² - 1)² (SynthSAEBench).

    The sum over pairs is computed as ‖EᵀE‖² - Σ ‖e_i‖⁴, with n·d² operations and d² floats.

    Args:
      key: random key of the initial directions.
      n_features: the number of directions n.
      d: number of dimensions.
      steps: the number of Adam steps.
      learning_rate: the learning rate of Adam.
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


@register_dataclass
@dataclasses.dataclass(frozen=True)
class WorldModel:
    """A model made from a world: `model(tokens)` returns x `[seq, pos, d]` for tokens `[seq, pos]`.

    Token t stands for row t of the world. A row is drawn on the device when it is read, and is the same in every run.

    Args:
      world: the world.
      key: random key of the rows.
      sites: the names of the values: one for x, or several for equal parts of x (the two models of `two_models`).
    """

    world: World
    key: Key[Array, ""]
    sites: tuple[str, ...] = dataclasses.field(default=("x",), metadata={"static": True})

    def __call__(self, tokens: Int[Array, "seq pos"], *, taps: tuple = ()) -> Any:
        site = Site.open(taps)
        draw = lambda number: self.world.sample(jax.random.fold_in(self.key, number), 1)[0][0]
        x = jax.vmap(draw)(tokens.reshape(-1)).reshape(*tokens.shape, -1)
        parts = [site(name, part) for name, part in zip(self.sites, jnp.split(x, len(self.sites), axis=-1))]
        return site.close(jnp.concatenate(parts, axis=-1))


def as_model(
    world: World, key: Key[Array, ""], sites: tuple[str, ...] = ("x",), batch: int = 1024
) -> tuple[WorldModel, Callable[[int], tuple[Int[Array, "1 pos"], Bool[Array, "1 pos"]]]]:
    """Make a model and batches from a world, for `train_dictionary`.

    Args:
      world: the world.
      key: random key of the rows.
      sites: the names of the model's values. Several values are equal parts of x.
      batch: the number of rows in a batch.

    Returns:
      `(model, batch_at)`. `batch_at(i)` returns (tokens, keep) for the rows i·batch to (i + 1)·batch - 1.

    Raises:
      UserError: x cannot be divided into that number of equal parts.
    """
    d = world.directions.shape[1]
    if d % len(sites):
        raise UserError(f"{len(sites)} values of equal width do not fit into a world of {d} dimensions")

    def batch_at(i: int) -> tuple[Array, Array]:
        return (i * batch + jnp.arange(batch, dtype=jnp.int32))[None], jnp.ones((1, batch), bool)

    return WorldModel(world, key, sites), batch_at
