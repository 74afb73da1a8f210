"""Random tokens: the attack without a gradient that any other attack must beat at an equal number of queries."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jax_interp.core.errors import UserError
from jax_interp.probes.monitors.attacks.attack import ATTACKS, Attack, Attacked, Objective


@ATTACKS.register
@dataclasses.dataclass(frozen=True)
class RandomTokens(Attack):
    """All slots are filled with random tokens; the best filling stays.

    Args:
      tries: the number of fillings.
    """

    tries: int = 256

    def __post_init__(self):
        if self.tries < 1:
            raise UserError(f"tries={self.tries} must be at least 1")

    @property
    def queries(self) -> int:
        return self.tries

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

        def attempt(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], Array]:
            best, loss = state
            drawn = allowed[jax.random.randint(key, slots.shape, 0, allowed.size)]
            filled = tokens.at[row, slots].set(drawn)
            found = objective(filled, None)
            better = found < loss  # False for NaN
            state = jnp.where(better[:, None], filled, best), jnp.where(better, found, loss)
            return state, state[1]

        start = objective(tokens, None)
        (best, loss), trace = jax.lax.scan(attempt, (tokens, start), jax.random.split(key, self.tries))
        return Attacked(best, None, loss, jnp.concatenate([start[None], trace]))
